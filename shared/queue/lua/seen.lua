-- seen: a worker's process lives, or (ARGV[2] = 1) is known to have exited: then its leases end now.
local owner, exited = ARGV[1], ARGV[2] == '1'
run_even_when_full()
if exited then
  local worker, boot = split_owner(owner)
  redis.call('HSET', P .. 'w:' .. worker, 'exited', boot)
  redis.call('EXPIRE', P .. 'w:' .. worker, HEARD_S)
  for _, rid in ipairs(redis.call('ZRANGE', P .. 'leases', 0, -1)) do
    if redis.call('HGET', P .. 'r:' .. rid, 'owner') == owner then redis.call('ZADD', P .. 'leases', '0', rid) end
  end
else
  hear(owner)
end
return 1
