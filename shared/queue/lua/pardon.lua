-- pardon: an operator forgives a dead letter; it runs again, washed clean, when its client comes back.
local rid, retain_ms = ARGV[1], ARGV[2]
local r = load(rid)
if not r then return answer(new_record(rid), 'missing') end
if r.state ~= 'dead' or redis.call('ZREM', P .. 'dead', rid) == 0 then return answer(r, 'refused') end
r.crashes, r.total_crashes, r.died_at, r.suspects, r.revivable = 0, 0, 0, '', 1
bury(r, 'cancelled', 'pardoned', retain_ms, {'crashes', 'total_crashes', 'died_at', 'suspects', 'revivable'})
return answer(r, 'ok')
