-- look: one whole record, for a router whose client came back with nothing but its rid.
local r = load(ARGV[1])
if not r then return {} end
local left = r.deadline > 0 and math.max(1, math.floor((r.deadline - NOW) / 1000)) or -1
return {answer(r, 'exists'), r.tenant, redis.call('HGET', P .. 'r:' .. r.rid, 'payload') or '', r.digest, text(r.cost), text(r.band),
  text(left), r.warm_key, text(r.crashes), text(r.revivable)}
