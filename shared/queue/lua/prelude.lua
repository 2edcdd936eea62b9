-- What every script begins with: the clock, the record, the indexes and the accounts. KEYS[1] is the prefix of all keys,
-- "rt:{model/shard}:". Times are microseconds of the Redis clock. A record is a table of the fields named below.
if redis.replicate_commands then redis.replicate_commands() end -- 6.2: a script that reads the clock replicates its effects
local P = KEYS[1]
local clock = redis.call('TIME')
local NOW = tonumber(clock[1]) * 1000000 + tonumber(clock[2])
local HEARD_S, WARM_S, IDLE_TENANT_S, IDLE_LOAD_S = 600, 60, 600, 3600
local MAX_CRASHES, MAX_TOTAL_CRASHES = 3, 8
local BAND, FIRST_TAG = 2 ^ 48, 1

local NUMBERS = {'epoch', 'attach', 'revivable', 'crashes', 'total_crashes', 'died_at', 'progress', 'counted', 'band', 'tag',
  'cost', 'deadline'}
local TEXTS = {'state', 'owner', 'router', 'suspects', 'reason', 'tenant', 'digest', 'warm_key', 'lane', 'usage'}
local FIELDS = {}
for _, name in ipairs(NUMBERS) do FIELDS[#FIELDS + 1] = name end
for _, name in ipairs(TEXTS) do FIELDS[#FIELDS + 1] = name end

-- Lua writes large numbers with an exponent unless told not to.
local function text(value)
  if type(value) == 'number' then return string.format('%.0f', value) end
  return value
end

local function fresh(number) return math.max(number + 1, NOW) end

-- A full server refuses a script's commands only until its first write, if that write removes something; put does not call this.
local function run_even_when_full() redis.call('DEL', P .. 'nothing') end

local function new_record(rid)
  local r = {rid = rid}
  for _, name in ipairs(NUMBERS) do r[name] = 0 end
  for _, name in ipairs(TEXTS) do r[name] = '' end
  return r
end

local function load(rid)
  local values = redis.call('HMGET', P .. 'r:' .. rid, unpack(FIELDS))
  local r = new_record(rid)
  for i, name in ipairs(FIELDS) do
    if values[i] then r[name] = i <= #NUMBERS and tonumber(values[i]) or values[i] end
  end
  return r.state ~= '' and r or nil
end

local function save(r, names)
  local args = {}
  for _, name in ipairs(names) do
    args[#args + 1] = name
    args[#args + 1] = text(r[name])
  end
  redis.call('HSET', P .. 'r:' .. r.rid, unpack(args))
end

local function answer(r, verdict, booked)
  return {verdict, r.state, text(r.epoch), r.owner, r.router, text(r.attach), r.reason, booked and '1' or '0'}
end

local function match(r, owner, epoch) return r.state == 'running' and r.owner == owner and r.epoch == epoch end

local function is_active(state) return state == 'queued' or state == 'running' end

local function score(r) return r.band * BAND + r.tag end

-- num and tokens of what waits (key "load") or of one tenant's requests that wait or run.
local function account(key, sign, cost, idle_s)
  local left = redis.call('HINCRBY', P .. key, 'num', sign)
  redis.call('HINCRBY', P .. key, 'tokens', text(sign * cost))
  if left > 0 then redis.call('PERSIST', P .. key) else redis.call('EXPIRE', P .. key, idle_s) end
end

-- The one way a record changes state: out of its index and accounts, into the new ones. `lane` is the sorted set it will stand
-- in: leases, waiting, waiting:<worker>, solo, parked, or '' when it has ended. Also saves the fields in `names`.
local function place(r, state, lane, at, names)
  local was = r.state
  if r.lane ~= '' then redis.call('ZREM', P .. r.lane, r.rid) end
  if was == 'queued' then
    redis.call('ZREM', P .. 'deadlines', r.rid)
    redis.call('ZREM', P .. 'affine', r.rid)
    account('load', -1, r.cost, IDLE_LOAD_S)
  end
  r.state, r.lane = state, lane
  if lane ~= '' then redis.call('ZADD', P .. lane, text(at), r.rid) end
  if state == 'queued' then
    account('load', 1, r.cost, IDLE_LOAD_S)
    if r.deadline > 0 then redis.call('ZADD', P .. 'deadlines', text(r.deadline), r.rid) end
  end
  if is_active(state) and not is_active(was) then account('tenant:' .. r.tenant, 1, r.cost, IDLE_TENANT_S) end
  if is_active(was) and not is_active(state) then account('tenant:' .. r.tenant, -1, r.cost, IDLE_TENANT_S) end
  names[#names + 1] = 'state'
  names[#names + 1] = 'lane'
  save(r, names)
  if is_active(state) then redis.call('PERSIST', P .. 'r:' .. r.rid) end
end

-- Ends a record: out of every index, kept for retain_ms. Its suspects stay: coming back must not wash a request clean.
local function bury(r, state, reason, retain_ms, names)
  r.reason = reason
  names[#names + 1] = 'reason'
  place(r, state, '', 0, names)
  redis.call('ZREM', P .. 'suspected', r.rid)
  redis.call('PEXPIRE', P .. 'r:' .. r.rid, retain_ms)
end

-- Suspects of a record: owner -> time of suspicion, stored as "owner time;" repeated, and how many.
local function suspects(r)
  local found, num = {}, 0
  for owner, at in string.gmatch(r.suspects, '(%S+) (%d+);') do
    found[owner] = tonumber(at)
    num = num + 1
  end
  return found, num
end

local function set_suspects(r, found)
  local parts = {}
  for owner, at in pairs(found) do parts[#parts + 1] = owner .. ' ' .. text(at) .. ';' end
  r.suspects = table.concat(parts)
  if #parts > 0 and is_active(r.state) then redis.call('ZADD', P .. 'suspected', text(NOW), r.rid)
  else redis.call('ZREM', P .. 'suspected', r.rid) end
end

local function doubts(r)
  local _, num = suspects(r)
  return r.crashes + num
end

-- Where a queued record stands: alone on an empty worker after two crashes or suspects, with nobody after three.
local function lane_of(r)
  local num = doubts(r)
  return num >= MAX_CRASHES and 'parked' or num == MAX_CRASHES - 1 and 'solo' or 'waiting'
end

-- Queued, in front: no later put gets a tag below that of the last claim, which is at least this one's.
local function requeue(r, names)
  r.owner = ''
  names[#names + 1] = 'owner'
  names[#names + 1] = 'suspects'
  place(r, 'queued', lane_of(r), score(r) - 1, names)
  if r.suspects ~= '' then redis.call('ZADD', P .. 'suspected', text(NOW), r.rid) end
end

-- Its owner has `progress` output tokens; past the token of the last crash it is washed clean. Names of the fields to save.
local function advance(r, progress)
  local names = {}
  if progress > r.progress then
    r.progress = progress
    names[1] = 'progress'
  end
  if r.crashes > 0 and progress > r.died_at then
    r.crashes = 0
    names[#names + 1] = 'crashes'
  end
  return names
end

local function ring() redis.call('PUBLISH', P .. 'bell', '1') end

local function split_owner(owner) return string.match(owner, '^(.*):([^:]*)$') end

-- The worker that calls lives.
local function hear(owner)
  local worker, boot = split_owner(owner)
  redis.call('HSET', P .. 'w:' .. worker, 'boot_id', boot, 'seen_at', text(NOW))
  redis.call('EXPIRE', P .. 'w:' .. worker, HEARD_S)
end

-- The worker that calls about this request is no suspect of it. Does not save a record that is not queued.
local function clear(r, owner)
  local found = suspects(r)
  if not found[owner] then return end
  found[owner] = nil
  set_suspects(r, found)
  if r.state == 'queued' then
    requeue(r, {})
    ring()
  else
    save(r, {'suspects'})
  end
end
