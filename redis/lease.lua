-- Makes a worker's lease hold exactly what the worker says it holds, under a new epoch; or closes it.
--
-- KEYS  1 state   2 order   3 workers   4 the worker's lease   5 a canary's order   6 queue
--       then of each zone its order and that for a canary
-- ARGV  1 worker   2 the new epoch, "" to give everything back and close the lease   3 the zones, joined by "\n"
--       then pairs: backend id, connections the worker holds
-- All tickets of the worker leave the queue.
-- Returns the version of the pool, or -2 when it has other zones (nothing done)
--
-- Atomic because the counts of the pool change by the difference between two states of the lease: read and
-- written in two steps, a claim or a reaper in between would be counted twice or never.

-- @include place
-- @include queue
-- @include held

local state, order, workers, lease = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local worker, epoch = ARGV[1], ARGV[2]

if (call('HGET', state, '_z') or '') ~= ARGV[3] then return -2 end
local delta = {}
for id, connections in pairs(held_by(lease)) do delta[id] = -connections end
for j = 4, #ARGV, 2 do delta[ARGV[j]] = (delta[ARGV[j]] or 0) + tonumber(ARGV[j + 1]) end
for id, difference in pairs(delta) do
  if difference == 0 then delta[id] = nil end
end
count(state, orders_of(order, KEYS[5], ARGV[3], 7), delta)
-- Who still waits asks again: tickets may have been given up while nobody could say so.
give_up(state, order, KEYS[6], worker)

call('DEL', lease)
if epoch == '' then
  call('ZREM', workers, worker)
else
  call('RPUSH', lease, epoch, table.concat(ARGV, '\t', 4))
  local now = call('TIME')
  call('ZADD', workers, now[1] + now[2] / 1000000, worker)
end
return tonumber(call('HGET', state, '_v')) or 0
