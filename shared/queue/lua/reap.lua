-- reap: requeues what lost its owner, judges suspects, ends what nobody claimed in time. At most `limit` of each.
-- `server`: the run id of the server that the caller knows; another one's leases are not judged, only its run id is told.
local limit, hold_us, retain_ms, quarantine_ms, server = tonumber(ARGV[1]), tonumber(ARGV[2]) * 1000, ARGV[3], ARGV[4], ARGV[5]
local run_id = string.match(redis.call('INFO', 'server'), 'run_id:(%x+)')
if run_id ~= server then return {run_id} end
run_even_when_full()
local requeued, expired, dead = 0, 0, {}

for _, rid in ipairs(redis.call('ZRANGEBYSCORE', P .. 'leases', '-inf', text(NOW), 'LIMIT', 0, limit)) do
  local r = load(rid)
  if r then
    local found = suspects(r)
    found[r.owner] = found[r.owner] or NOW
    set_suspects(r, found)
    requeue(r, {})
    requeued = requeued + 1
  else
    redis.call('ZREM', P .. 'leases', rid)
  end
end

for _, rid in ipairs(redis.call('ZRANGEBYSCORE', P .. 'deadlines', '-inf', text(NOW), 'LIMIT', 0, limit)) do
  local r = load(rid)
  if r then
    bury(r, 'dead', 'deadline', retain_ms, {})
    expired = expired + 1
  else
    redis.call('ZREM', P .. 'deadlines', rid)
  end
end

-- 'crashed', 'lives', or nil while it is not known.
local function verdict(owner, suspected_at)
  local worker, boot = split_owner(owner)
  local known = redis.call('HMGET', P .. 'w:' .. worker, 'boot_id', 'seen_at', 'exited')
  if known[3] == boot or (known[1] and known[1] ~= boot) then return 'crashed' end
  if known[1] and tonumber(known[2]) > suspected_at then return 'lives' end
  if NOW - suspected_at >= hold_us then return 'crashed' end
end

local function judge(r)
  local found, changed = suspects(r), false
  for owner, at in pairs(found) do
    local proof = verdict(owner, at)
    if proof then changed, found[owner] = true, nil end
    if proof == 'crashed' then
      r.crashes, r.total_crashes, r.died_at = r.crashes + 1, r.total_crashes + 1, r.progress
    end
  end
  set_suspects(r, found) -- also to the end of the line of those to be judged
  if not changed then return end
  local names = {'crashes', 'total_crashes', 'died_at'}
  if r.crashes < MAX_CRASHES and r.total_crashes < MAX_TOTAL_CRASHES then return requeue(r, names) end
  bury(r, 'dead', 'crashes', quarantine_ms, names)
  redis.call('ZADD', P .. 'dead', text(NOW), r.rid)
  redis.call('ZREMRANGEBYSCORE', P .. 'dead', '-inf', text(NOW - tonumber(quarantine_ms) * 1000))
  redis.call('PEXPIRE', P .. 'dead', quarantine_ms)
  dead[#dead + 1] = r.rid
end

for _, rid in ipairs(redis.call('ZRANGE', P .. 'suspected', 0, limit - 1)) do
  local r = load(rid)
  if not r then redis.call('ZREM', P .. 'suspected', rid)
  elseif r.state == 'queued' then judge(r)
  else redis.call('ZADD', P .. 'suspected', text(NOW), rid) end
end
if requeued > 0 then ring() end
return {run_id, requeued, expired, dead}
