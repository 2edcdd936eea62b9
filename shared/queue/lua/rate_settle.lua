-- rate_settle: a request has ended with `used` tokens: what was taken beyond them goes back, once; what it used beyond what was
-- taken is taken now. Works when Redis is full: its first write removes.
local rid, used, max_requests, max_tokens = unpack(ARGV)
local charged = redis.call('GET', P .. 'c:' .. rid)
redis.call('DEL', P .. 'c:' .. rid)
local b = load(tonumber(max_requests), tonumber(max_tokens))
if not charged then return reply(b, 'missing') end
b.tokens = math.min(b.max_tokens, b.tokens + tonumber(charged) - tonumber(used))
save(b)
return reply(b, 'ok')
