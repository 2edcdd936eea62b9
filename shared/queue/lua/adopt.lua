-- adopt: a client came back on this router. What ended while its client was still owed tokens runs again, counted once.
local rid, body_tenant, band, cost, deadline_ms, digest, warm_key, payload, tenant, router, attach = unpack(ARGV)
attach = tonumber(attach)
run_even_when_full()
local r = load(rid)
if not r then return answer(new_record(rid), 'missing') end
if r.tenant ~= tenant then return {'foreign'} end
if r.state == 'dead' or (r.state == 'cancelled' and r.revivable == 0) then return answer(r, 'ended') end
if attach > 0 and (attach < r.attach or (attach == r.attach and router ~= r.router)) then return answer(r, 'superseded') end

local names = {'router', 'attach'}
if not is_active(r.state) then
  -- A record that finish made for a forgotten request has no body; the client's own is as good.
  if redis.call('HEXISTS', P .. 'r:' .. rid, 'payload') == 0 then
    if payload == '' then return answer(r, 'gone') end
    r.band, r.cost, r.digest, r.warm_key = tonumber(band), tonumber(cost), digest, warm_key
    if deadline_ms ~= '0' then r.deadline = NOW + tonumber(deadline_ms) * 1000 end
    r.tag = tonumber(redis.call('HGET', P .. 'load', 'V') or FIRST_TAG)
    redis.call('HSET', P .. 'r:' .. rid, 'payload', payload)
    for _, name in ipairs({'band', 'cost', 'digest', 'warm_key', 'deadline', 'tag'}) do names[#names + 1] = name end
  end
  -- Its time was up to its end; being made again it has a new one.
  if r.state == 'done' and r.deadline > 0 and deadline_ms ~= '0' then
    r.deadline = NOW + tonumber(deadline_ms) * 1000
    names[#names + 1] = 'deadline'
  end
  r.epoch, r.reason, r.revivable = fresh(r.epoch), '', 0
  for _, name in ipairs({'epoch', 'reason', 'revivable'}) do names[#names + 1] = name end
end
r.router, r.attach = router, attach > 0 and attach or fresh(r.attach)
if is_active(r.state) then
  save(r, names)
else
  requeue(r, names)
  ring()
end
return answer(r, 'ok')
