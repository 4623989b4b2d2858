-- Gives back what a worker held that has shown no sign of life for longer than its lease.
--
-- KEYS  1 state   2 order   3 workers   4 the worker's lease   5 a canary's order   6 queue
--       then of each zone its order and that for a canary
-- ARGV  1 worker   2 length of a lease, seconds   3 the zones, joined by "\n"
-- Whoever of its requests waits in the queue waits no more, and what is free now goes to the others there.
-- Returns the number of connections given back, -1 when the worker is alive, -2 when the pool has other zones (both:
--       nothing done)
--
-- Atomic because several reapers look for the dead, and the dead may wake up: whoever comes first takes the
-- lease away whole, and the next one finds nothing. The age is judged here, by the server's clock.

-- @include place
-- @include queue
-- @include held

local state, order, workers, lease = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local now, seen = call('TIME'), call('ZSCORE', workers, ARGV[1])
local age = seen and now[1] + now[2] / 1000000 - tonumber(seen)
-- A sign of life from the future: the clock was put back. Whoever lives gives another one; a lease begins for the dead.
if age and age < 0 then call('ZADD', workers, now[1] + now[2] / 1000000, ARGV[1]) end
if age and age < tonumber(ARGV[2]) then return -1 end

if (call('HGET', state, '_z') or '') ~= ARGV[3] then return -2 end
local delta, total = {}, 0
for id, connections in pairs(held_by(lease)) do
  if connections > 0 then
    delta[id] = -connections
    total = total + connections
  end
end
count(state, orders_of(order, KEYS[5], ARGV[3], 7), delta)
call('DEL', lease)
call('ZREM', workers, ARGV[1])
give_up(state, order, KEYS[6], ARGV[1])
return total
