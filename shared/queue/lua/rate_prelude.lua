-- What the scripts of a key's rate limits begin with. KEYS[1] is the prefix of its keys, "rt:{key:<id>}:"; times are microseconds
-- of the Redis clock. Two buckets, of requests and of tokens, fill evenly and are full after a minute without use; a level may be
-- negative, for what was used beyond what was foreseen. A limit of 0 is none.
if redis.replicate_commands then redis.replicate_commands() end -- 6.2: a script that reads the clock replicates its effects
local P = KEYS[1]
local clock = redis.call('TIME')
local NOW = tonumber(clock[1]) * 1000000 + tonumber(clock[2])
local MINUTE = 60000000

-- Levels travel exactly: as many digits as a double has.
local function exact(value) return string.format('%.17g', value) end

local function load(max_requests, max_tokens)
  local values = redis.call('HMGET', P .. 'level', 'requests', 'tokens', 'at')
  -- After a failover the clock may be behind.
  local past = math.max(0, NOW - tonumber(values[3] or NOW))
  local function level(stored, most)
    if not stored or most == 0 then return most end
    return math.min(most, tonumber(stored) + past * most / MINUTE)
  end
  return {requests = level(values[1], max_requests), tokens = level(values[2], max_tokens), max_requests = max_requests,
    max_tokens = max_tokens}
end

-- Until a bucket holds `wanted`, microseconds.
local function wait_for(level, wanted, most)
  if most == 0 or level >= wanted then return 0 end
  return (wanted - level) * MINUTE / most
end

local function save(b)
  local full = math.max(wait_for(b.requests, b.max_requests, b.max_requests), wait_for(b.tokens, b.max_tokens, b.max_tokens))
  redis.call('HSET', P .. 'level', 'requests', exact(b.requests), 'tokens', exact(b.tokens), 'at', exact(NOW))
  redis.call('PEXPIRE', P .. 'level', string.format('%.0f', full / 1000 + 1000))
end

local function reply(b, verdict, wait)
  return {verdict, exact(NOW), exact(b.requests), exact(b.tokens), exact(wait or 0)}
end
