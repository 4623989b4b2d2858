-- A worker's sign of life.
--
-- KEYS  1 state   2 workers   3 the worker's lease
-- ARGV  1 worker   2 epoch of the lease
-- Returns the version of the pool, or -1 when the lease is not at this epoch (reaped, or opened anew)
--
-- Atomic because a beat after a reaping must not put the worker back among the living: its lease is gone,
-- and nobody would ever reap it again.

if redis.call('LINDEX', KEYS[3], 0) ~= ARGV[2] then return -1 end
local now = redis.call('TIME')
redis.call('ZADD', KEYS[2], now[1] + now[2] / 1000000, ARGV[1])
return tonumber(redis.call('HGET', KEYS[1], '_v')) or 0
