-- discard: an operator drops a dead letter, prompt and all.
local rid = ARGV[1]
run_even_when_full()
local r = load(rid)
if not r then return answer(new_record(rid), 'missing') end
if r.state ~= 'dead' or redis.call('ZREM', P .. 'dead', rid) == 0 then return answer(r, 'refused') end
redis.call('DEL', P .. 'r:' .. rid)
return answer(r, 'ok')
