-- Takes, renews or gives up a lock that one owner at a time holds.
--
-- KEYS  1 the lock
-- ARGV  1 owner   2 milliseconds until it lapses, 0 to give it up
-- Returns 1 when the owner has it (or has given it up), 0 when another owner has it (nothing done)
--
-- Atomic because between reading who has the lock and writing, it may lapse and go to another, whose lock
-- would then be prolonged or deleted by one who lost it.

local owner = redis.call('GET', KEYS[1])
if owner and owner ~= ARGV[1] then return 0 end
if ARGV[2] == '0' then
  redis.call('DEL', KEYS[1])
else
  redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
end
return 1
