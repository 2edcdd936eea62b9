-- renew: extends the leases of all that a worker holds, after a finished step. Lines of (rid, epoch, attach, progress).
local owner, lease_ms = ARGV[1], tonumber(ARGV[2])
run_even_when_full()
hear(owner)

local function renewed(r, progress)
  local names = advance(r, progress)
  if #names > 0 then save(r, names) end
  redis.call('ZADD', P .. 'leases', text(NOW + lease_ms * 1000), r.rid)
  return {'ok', r.router, text(r.attach)}
end

local verdicts = {}
for i = 3, #ARGV, 4 do
  local r, epoch = load(ARGV[i]), tonumber(ARGV[i + 1])
  local verdict = {'lost', '', '0'}
  if r then clear(r, owner) end
  if not r then
    verdict[1] = 'unknown'
  elseif match(r, owner, epoch) then
    verdict = renewed(r, tonumber(ARGV[i + 3]))
  elseif r.state == 'cancelled' and r.owner == owner and r.epoch == epoch then
    verdict[1] = 'cancelled'
  end
  verdicts[#verdicts + 1] = verdict
end
return verdicts
