-- put: creates the record if there is none, never overwrites. Limits apply to a first put only.
local rid, tenant, band, cost, deadline_ms, digest, warm_key, payload, router, attach, first, known_owner, known_epoch,
  known_crashes, known_progress, weight, lease_ms, affinity_ms, max_num, max_tokens, max_tenant_num, max_tenant_tokens = unpack(ARGV)
cost = tonumber(cost)

local r = load(rid)
if r then
  if (r.tenant ~= '' and r.tenant ~= tenant) or (r.digest ~= '' and r.digest ~= digest) then return {'reused'} end
  return answer(r, 'exists')
end

-- {num, tokens, ...} of an account; one request always fits, however large, when nothing else is there.
local function over(values, most_num, most_tokens)
  local num, tokens = tonumber(values[1] or 0), tonumber(values[2] or 0)
  return num > 0 and (num + 1 > tonumber(most_num) or tokens + cost > tonumber(most_tokens)), num
end

local waits = redis.call('HMGET', P .. 'load', 'num', 'tokens', 'V', 'rate')
local owns = redis.call('HMGET', P .. 'tenant:' .. tenant, 'num', 'tokens', 'F')
if first == '1' then
  local rate = tonumber(waits[4] or 0)
  for _, check in ipairs({{'limited', over(owns, max_tenant_num, max_tenant_tokens)}, {'overloaded', over(waits, max_num, max_tokens)}}) do
    if check[2] then
      -- until a tenth of what is there has drained, 1 to 60 s
      local wait_ms = rate > 0 and math.min(math.max(100 * check[3] / rate, 1000), 60000) or 1000
      return {check[1], text(wait_ms)}
    end
  end
end

r = new_record(rid)
r.router, r.tenant, r.band, r.cost, r.digest, r.warm_key = router, tenant, tonumber(band), cost, digest, warm_key
r.attach = attach ~= '0' and tonumber(attach) or fresh(0)
r.crashes = math.min(tonumber(known_crashes), MAX_CRASHES - 1) -- what is put back may run once more, alone
r.total_crashes = r.crashes
r.progress = tonumber(known_progress)
r.died_at = r.crashes > 0 and r.progress or 0 -- or what it died of last would be behind it as soon as it begins
if deadline_ms ~= '0' then r.deadline = NOW + tonumber(deadline_ms) * 1000 end
r.tag = math.max(tonumber(waits[3] or FIRST_TAG), tonumber(owns[3] or 0)) -- start-time fair queueing
local names = {'router', 'tenant', 'band', 'cost', 'digest', 'warm_key', 'attach', 'crashes', 'total_crashes', 'progress', 'died_at', 'deadline', 'tag',
  'epoch', 'owner'}
if known_owner ~= '' then
  r.owner, r.epoch = known_owner, tonumber(known_epoch)
  place(r, 'running', 'leases', NOW + tonumber(lease_ms) * 1000, names)
else
  r.epoch = fresh(tonumber(known_epoch))
  local lane = lane_of(r)
  local worker = lane == 'waiting' and warm_key ~= '' and redis.call('GET', P .. 'warm:' .. warm_key)
  if worker and redis.call('EXISTS', P .. 'w:' .. worker) == 1 then lane = 'waiting:' .. worker else worker = false end
  place(r, 'queued', lane, score(r), names)
  if worker then redis.call('ZADD', P .. 'affine', text(NOW + tonumber(affinity_ms) * 1000), rid) end
  ring()
end
redis.call('HSET', P .. 'r:' .. rid, 'payload', payload)
redis.call('HSET', P .. 'tenant:' .. tenant, 'F', text(r.tag + math.ceil(cost / tonumber(weight))))
return answer(r, 'ok')
