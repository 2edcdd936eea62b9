-- revoke: the stream between this router and that owner broke; the lease expires now and reap does the rest. `progress`: output
-- tokens the router has, which is where the owner died if it did; its own last renewal may tell of much less.
local rid, router, owner, epoch, progress = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
run_even_when_full()
local r = load(rid)
if not r then return answer(new_record(rid), 'missing') end
if not match(r, owner, epoch) or r.router ~= router then return answer(r, 'refused') end
if progress > r.progress then
  r.progress = progress
  save(r, {'progress'})
end
redis.call('ZADD', P .. 'leases', '0', rid)
return answer(r, 'ok')
