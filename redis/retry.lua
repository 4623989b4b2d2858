-- The retry budget of a pool: counts requests and retries of the whole fleet, and says whether one more retry may be.
--
-- KEYS  1 retries: second → requests ("n<second>") and retries ("r<second>") that were told in it
-- ARGV  1 requests to add   2 share of the requests that retries may be   3 retries a second that may be in any case
--       4 seconds that count   5 is a retry wanted: 1 or 0
-- Returns 1 when the retry may be (it is counted then), else 0
--
-- Atomic because two workers that read the same sum would both take the last retry that is left.

local key, call, tonumber = KEYS[1], redis.call, tonumber
local more, share, least, window = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local now = tonumber(call('TIME')[1])

local sums, old = { n = more, r = 0 }, {}
local found = call('HGETALL', key)
for j = 1, #found, 2 do
  local kind, second = string.sub(found[j], 1, 1), tonumber(string.sub(found[j], 2))
  if second <= now - window then
    old[#old + 1] = found[j]
  else
    sums[kind] = sums[kind] + tonumber(found[j + 1])
  end
end
if #old > 0 then call('HDEL', key, unpack(old)) end

local may = 0
if ARGV[5] == '1' and sums.r + 1 <= math.max(share * sums.n, least * window) then
  may = 1
  call('HINCRBY', key, 'r' .. now, 1)
end
if more > 0 then call('HINCRBY', key, 'n' .. now, more) end
call('EXPIRE', key, window + 1)
return may
