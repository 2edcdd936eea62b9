-- reserve: whether this worker must take nothing more until it is empty, for what must run alone and has waited too long.
-- Under constant load no worker is ever empty by itself. One worker at a time: suspects must not stop all the others.
local owner, wait_ms, hold_ms = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local worker, key = split_owner(owner), P .. 'reserved'
run_even_when_full()
hear(owner)

local rid = redis.call('ZRANGE', P .. 'solo', 0, 0)[1]
if not rid then
  redis.call('DEL', key)
  return 0
end
local first, since, holder, till = unpack(redis.call('HMGET', key, 'rid', 'since', 'worker', 'till'))
local held = holder and tonumber(till) > NOW
if not held and first ~= rid then
  -- Another one is the first in line: those before it were taken, so this one's time begins now.
  redis.call('DEL', key)
  since = text(NOW)
  redis.call('HSET', key, 'rid', rid, 'since', since)
end
local mine = held and holder == worker or not held and NOW - tonumber(since) >= wait_ms * 1000
if mine then redis.call('HSET', key, 'rid', rid, 'worker', worker, 'till', text(NOW + hold_ms * 1000)) end
redis.call('PEXPIRE', key, text(math.max(wait_ms, hold_ms) * 10))
return mine and 1 or 0
