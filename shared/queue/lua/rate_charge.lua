-- rate_charge: takes the tokens that a request may use, once while it is under way. One larger than the whole bucket waits until
-- that is full, and leaves it in debt.
local rid, cost, keep_ms, max_requests, max_tokens = unpack(ARGV)
cost = tonumber(cost)
local b = load(tonumber(max_requests), tonumber(max_tokens))
if redis.call('EXISTS', P .. 'c:' .. rid) == 1 then return reply(b, 'again') end
local wait = wait_for(b.tokens, math.min(cost, b.max_tokens), b.max_tokens)
if wait > 0 then return reply(b, 'limited', wait) end
b.tokens = b.tokens - cost
redis.call('SET', P .. 'c:' .. rid, exact(cost), 'PX', keep_ms)
save(b)
return reply(b, 'ok')
