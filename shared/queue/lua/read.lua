-- read: the records as reconcile compares them, all at one moment; an empty list where there is none.
local found = {}
for i, rid in ipairs(ARGV) do
  local r = load(rid)
  found[i] = r and {r.state, text(r.epoch), r.owner, r.router, text(r.attach), text(r.revivable), text(r.crashes), text(r.counted),
    r.reason, r.tenant, r.usage} or {}
end
return found
