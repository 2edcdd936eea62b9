-- finish: ends a request once and books its usage once, even when Redis is full or has forgotten it.
local rid, owner, epoch, attach, outcome, reason, tenant, usage, retain_ms = unpack(ARGV)
epoch, attach = tonumber(epoch), tonumber(attach)
local state = ({done = 'done', cancelled = 'cancelled', failed = 'dead'})[outcome]
run_even_when_full()
hear(owner)

local r = load(rid)
local missing = not r
if missing then
  r = new_record(rid)
  r.tenant, r.epoch, r.attach = tenant, epoch, attach
else
  clear(r, owner)
end

local function book()
  if r.counted == 1 then return false end
  r.usage, r.counted = usage, 1
  return true
end

if missing or match(r, owner, epoch) then
  if r.attach ~= attach then return answer(r, 'moved') end
  local booked = book()
  r.owner, r.revivable = owner, (state == 'cancelled' and reason ~= 'client') and 1 or 0
  bury(r, state, reason, retain_ms, {'owner', 'epoch', 'attach', 'tenant', 'revivable', 'usage', 'counted'})
  return answer(r, 'ok', booked)
end

-- It ended already: by this call before, or by a cancel that overtook it. Its tokens were made and are counted.
local ended_mine = not is_active(r.state) and ((r.owner == owner and r.epoch == epoch) or r.owner == '')
if not ended_mine then return answer(r, 'refused') end
local booked = book()
if booked then save(r, {'usage', 'counted'}) end
return answer(r, (r.state == state and r.owner == owner) and 'ok' or 'refused', booked)
