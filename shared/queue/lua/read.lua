-- read: the records as reconcile compares them, all at one moment. Asks for few fields: routers read all they owe every 2 s.
local found = {}
for i, rid in ipairs(ARGV) do
  found[i] = redis.call('HMGET', P .. 'r:' .. rid, 'state', 'epoch', 'owner', 'router', 'attach', 'revivable', 'crashes', 'counted',
    'reason', 'tenant', 'usage')
end
return found
