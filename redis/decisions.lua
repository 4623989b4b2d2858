-- Keeps what workers tell of their decisions, for a while and up to a number.
--
-- KEYS  1 decisions: request id → JSON   2 when each came, by the server's time
-- ARGV  1 seconds to keep them   2 how many to keep at most   then any number of pairs: request id, JSON
-- Returns how many are kept
--
-- Atomic because the two keys are one: a decision without its time would never be forgotten, and of two workers that
-- write at once each would leave room for itself alone. Both keys also expire, for nobody may write any more.

-- @include order

local decisions, times = KEYS[1], KEYS[2]
local keep, most, now = tonumber(ARGV[1]), tonumber(ARGV[2]), seconds()
local sets, adds = {}, {}
for j = 3, #ARGV, 2 do
  local at = #sets
  sets[at + 1], sets[at + 2] = ARGV[j], ARGV[j + 1]
  -- The last of a batch came last; times of one batch are a microsecond apart, so that they stay in sequence.
  adds[at + 1], adds[at + 2] = string.format('%.6f', now + j / 2000000), ARGV[j]
end
many('HSET', decisions, sets, 2)
many('ZADD', times, adds, 2)

many('HDEL', decisions, call('ZRANGEBYSCORE', times, '-inf', now - keep))
call('ZREMRANGEBYSCORE', times, '-inf', now - keep)
local count = call('ZCARD', times)
if count > most then
  many('HDEL', decisions, call('ZRANGE', times, 0, count - most - 1))
  call('ZREMRANGEBYRANK', times, 0, count - most - 1)
  count = most
end
local lasts = math.ceil(keep) + 1
call('EXPIRE', decisions, lasts)
call('EXPIRE', times, lasts)
return count
