-- cancel: exact rid, bound to its tenant. A client's cancel is final; a disconnect counts only if the client is still there.
local rid, tenant, router, attach, why, retain_ms = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), ARGV[5], ARGV[6]
run_even_when_full()
local r = load(rid)
if r and r.tenant ~= tenant then return {'foreign'} end

if why == 'disconnect' then
  if not r then return answer(new_record(rid), 'missing') end
  if r.router ~= router or r.attach ~= attach then return answer(r, 'refused') end
  if is_active(r.state) then
    r.revivable = 1
    bury(r, 'cancelled', why, retain_ms, {'revivable'})
  end
  return answer(r, r.state == 'cancelled' and 'ok' or 'refused')
end

if not r then
  r = new_record(rid)
  r.tenant, r.router, r.attach = tenant, router, attach
  bury(r, 'cancelled', why, retain_ms, {'tenant', 'router', 'attach', 'revivable'})
elseif is_active(r.state) then
  r.revivable = 0
  bury(r, 'cancelled', why, retain_ms, {'revivable'})
elseif r.state == 'cancelled' then
  r.revivable, r.reason = 0, why
  save(r, {'revivable', 'reason'})
end
return answer(r, r.state == 'cancelled' and 'ok' or 'refused')
