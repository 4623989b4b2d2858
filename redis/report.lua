-- Takes what a backend reports of its load: the share of its weight that counts from now on.
--
-- KEYS  1 state   2 order   3 a canary's order   then of each zone its order and that for a canary
-- ARGV  1 backend   2 the share of it that is free, 0.01 to 1   3 seconds for which a report counts
--       4 seconds in which the memory of former reports fades to 1/e   5 seconds for which the reports of a backend do
--       not count that has none, or none any more: what it says while it warms up is not how it will be
--       6 the zones, joined by "\n"
-- Returns the smoothed share, in millionths; -1 when there is no such backend, -2 when the pool has other zones (both:
--       nothing done)
--
-- Atomic because the share is smoothed over the one before, and the backend's place in the order of turns follows
-- from both: a pick between reading and writing would be made at one weight and counted at another.

-- @include order
-- @include zones

local state, id = KEYS[1], ARGV[1]
local free, lasts, fade, blackout = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])

local seen = call('HMGET', state, id, '_s' .. id, '_a', '_ca', '_z')
if (seen[5] or '') ~= ARGV[6] then return -2 end
local weight = seen[1] and select(3, unpack_record(RECORD, seen[1]))
if not weight or weight == GONE then return -1 end

local now = seconds()
local counted, smooth, began = share(seen[2], now), free, now
if seen[2] then
  local _, before, at, till, since = unpack_record(REPORT, seen[2])
  if now < till then
    began = since
    local keep = math.exp(-math.max(0, now - at) / fade)
    smooth = before * keep + free * (1 - keep)
  end
end
local counts = now - began < blackout and 1 or smooth
call('HSET', state, '_s' .. id, pack(REPORT, counts, smooth, now, now + lasts, began))

for _, order in ipairs(orders_of(KEYS[2], KEYS[3], ARGV[6], 4)) do
  local kind = seen[order.canary and 4 or 3]
  local score = kind == 'reported-turns' and counts ~= counted and call('ZSCORE', order.key, id)
  local floor = score and tonumber(call('HGET', state, order.prefix .. 'f')) or 0
  if score and tonumber(score) > floor then
    -- What is left of its step shrinks or grows with the weight, so that the report acts at once.
    call('ZADD', order.key, floor + (score - floor) * counted / counts, id)
  end
end
return math.floor(smooth * 1000000 + 0.5)
