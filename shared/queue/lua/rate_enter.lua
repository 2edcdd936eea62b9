-- rate_enter: one call of a key comes in; `count` 1 takes a request from its bucket, 0 only tells the levels. Refused while no
-- token is left, too: what it asks for is not yet known. A repeat after a lost reply counts again.
local count, max_requests, max_tokens = unpack(ARGV)
local b = load(tonumber(max_requests), tonumber(max_tokens))
if count == '0' then return reply(b, 'ok') end
local wait = math.max(wait_for(b.requests, 1, b.max_requests), wait_for(b.tokens, 1, b.max_tokens))
if wait > 0 then return reply(b, 'limited', wait) end
if b.max_requests > 0 then b.requests = b.requests - 1 end
save(b)
return reply(b, 'ok')
