-- release: a worker hands a request back (drain, no room, fenced): a fresh epoch, front of the queue, no crash.
local rid, owner, epoch, floor, progress = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
run_even_when_full()
hear(owner)
local r = load(rid)
if not r then return answer(new_record(rid), 'missing') end
clear(r, owner)
if not match(r, owner, epoch) then return answer(r, 'refused') end
r.epoch = fresh(math.max(r.epoch, floor))
local names = advance(r, progress)
names[#names + 1] = 'epoch'
requeue(r, names)
ring()
return answer(r, 'ok')
