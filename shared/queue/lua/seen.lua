-- seen: a worker's process lives, or (ARGV[2] = 1) is known to have exited.
local owner, exited = ARGV[1], ARGV[2] == '1'
run_even_when_full()
if exited then
  local worker, boot = split_owner(owner)
  redis.call('HSET', P .. 'w:' .. worker, 'exited', boot)
  redis.call('EXPIRE', P .. 'w:' .. worker, HEARD_S)
else
  hear(owner)
end
return 1
