-- claim: gives a worker up to k requests it can start now.
local owner, k, solo, lease_ms, max_cost, retain_ms = ARGV[1], tonumber(ARGV[2]), ARGV[3] == '1', tonumber(ARGV[4]), tonumber(ARGV[5]),
  ARGV[6]
local worker = split_owner(owner)
local OVERDUE, SKIPS, RATE_WINDOW = 100, 100, 10000000
local mine, claimed, total = 'waiting:' .. worker, {}, 0

run_even_when_full()
hear(owner)

-- Waited long enough for the worker that has their prefix: anyone may take them.
for _, rid in ipairs(redis.call('ZRANGEBYSCORE', P .. 'affine', '-inf', text(NOW), 'LIMIT', 0, OVERDUE)) do
  local r = load(rid)
  if r then place(r, 'queued', 'waiting', score(r), {}) else redis.call('ZREM', P .. 'affine', rid) end
end

local function head(lane)
  local found = redis.call('ZRANGE', P .. lane, 0, 0, 'WITHSCORES')
  return found[1], tonumber(found[2] or math.huge)
end

-- The record of an index entry if it may be started; else the entry is gone afterwards.
local function startable(lane, rid)
  local r = load(rid)
  if not r then
    redis.call('ZREM', P .. lane, rid)
  elseif r.deadline > 0 and r.deadline <= NOW then
    bury(r, 'dead', 'deadline', retain_ms, {})
  else
    return r
  end
end

local function take(r)
  local alone = doubts(r) >= MAX_CRASHES - 1
  local found = suspects(r)
  if found[owner] then
    found[owner] = nil
    set_suspects(r, found)
  end
  r.owner, r.epoch = owner, fresh(r.epoch)
  place(r, 'running', 'leases', NOW + lease_ms * 1000, {'owner', 'epoch', 'suspects'})
  if r.warm_key ~= '' then redis.call('SET', P .. 'warm:' .. r.warm_key, worker, 'EX', WARM_S) end
  local left = r.deadline > 0 and math.max(1, math.floor((r.deadline - NOW) / 1000)) or -1
  claimed[#claimed + 1] = {r.rid, text(r.epoch), r.router, text(r.attach), redis.call('HGET', P .. 'r:' .. r.rid, 'payload') or '',
    text(left), text(r.band), text(r.tag), r.tenant, text(r.cost), text(r.crashes), text(r.died_at), alone and '1' or '0'}
  total = total + r.cost
  return r.tag
end

-- Virtual time follows the claims; the drain rate is measured over windows.
local function book(tag)
  local values = redis.call('HMGET', P .. 'load', 'V', 'drained', 'window')
  local drained, window = tonumber(values[2] or 0) + #claimed, tonumber(values[3] or 0)
  redis.call('HSET', P .. 'load', 'V', text(math.max(tonumber(values[1] or FIRST_TAG), tag)))
  if NOW - window > RATE_WINDOW then
    if window > 0 then redis.call('HSET', P .. 'load', 'rate', string.format('%.6f', drained * 1e6 / (NOW - window))) end
    drained, window = 0, NOW
  end
  redis.call('HSET', P .. 'load', 'drained', text(drained), 'window', text(window))
end

if solo and k > 0 then
  local rid = head('solo')
  local r = rid and startable('solo', rid)
  if r then
    book(take(r))
    return claimed
  end
end

local skipped, tag = 0, 0
while #claimed < k and skipped < SKIPS do
  local rid, at = head('waiting')
  local own, own_at = head(mine)
  local lane = 'waiting'
  if own and (not rid or own_at < at) then rid, lane = own, mine end
  if not rid then break end
  local r = startable(lane, rid)
  if not r then
    skipped = skipped + 1
  elseif max_cost >= 0 and total + r.cost > max_cost and not (solo and #claimed == 0) then
    break
  else
    tag = math.max(tag, take(r))
  end
end
if #claimed > 0 then book(tag) end
return claimed
