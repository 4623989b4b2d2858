-- Requests that are carried out once: which keys are known, who serves them now, what was answered.
--
-- KEYS  1 key → entry, "_bytes" → what all entries take   2 when each entry is forgotten   3 workers
-- ARGV  1 what to do: "begin", "finish" or "release"   2 key (a digest)   3 fingerprint of the request (a digest, 32 bytes)
--       4 the worker   5 which of its requests   6 length of a lease, seconds
--       begin:  7 seconds to keep it   8 bytes that all entries may take
--       finish: 7 seconds to keep it   8 bytes that all entries may take   9 the answer, or "" when it is too large
-- Returns begin: 0 it is yours, 1 it is being served, 2 the first request was another one, 4 it was carried out and
--       the answer was not kept, 5 there is no room; or the answer that was kept. finish, release: 1 done, 0 it is
--       not yours (any more)
--
-- Atomic because of two requests that come at once only one may find that there is none yet; and because whoever
-- takes over from a dead worker must not be overtaken by it when it wakes up.
--
-- An entry is one letter (R: it runs, A: answered, N: answered, not kept), the fingerprint, and for R worker and request,
-- for A the answer. It runs as long as its worker shows signs of life, like the worker's connections.

local entries, untils, call, tonumber, sub = KEYS[1], KEYS[2], redis.call, tonumber, string.sub
local what, key, print, lease, keep, most = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8])
local mine = ARGV[4] .. '\n' .. ARGV[5]
-- Bytes that an entry takes besides what is in it: its key twice, its time, the tables' own.
local EACH = 300
-- Entries that are forgotten in one call at most.
local SWEEP = 64

local time = call('TIME')
local now = time[1] + time[2] / 1000000

local function forget(name)
  local size = call('HSTRLEN', entries, name)
  if size > 0 then
    call('HDEL', entries, name)
    call('HINCRBY', entries, '_bytes', -(size + EACH))
  end
  call('ZREM', untils, name)
end

local function write(entry, before)
  call('HSET', entries, key, entry)
  call('HINCRBY', entries, '_bytes', #entry - (before and #before or -EACH))
  call('ZADD', untils, string.format('%.3f', now + keep), key)
  for _, name in ipairs({ entries, untils }) do
    if call('TTL', name) < keep then call('EXPIRE', name, math.ceil(keep) + 1) end
  end
end

local function room(more)
  return (tonumber(call('HGET', entries, '_bytes')) or 0) + more <= most
end

for _, name in ipairs(call('ZRANGEBYSCORE', untils, '-inf', now, 'LIMIT', 0, SWEEP)) do forget(name) end
local over = call('ZSCORE', untils, key)
if over and tonumber(over) <= now then forget(key) end

local entry = call('HGET', entries, key)
local state = entry and sub(entry, 1, 1)
local yours = state == 'R' and sub(entry, 34) == mine

if what == 'begin' then
  if state == 'R' then
    local worker = string.match(sub(entry, 34), '^[^\n]*')
    local seen = call('ZSCORE', KEYS[3], worker)
    if seen and tonumber(seen) > now - lease then
      return sub(entry, 2, 33) == print and 1 or 2
    end
  elseif state then
    if sub(entry, 2, 33) ~= print then return 2 end
    if state == 'N' then return 4 end
    return sub(entry, 34)
  end
  local made = 'R' .. print .. mine
  if not room(#made + EACH - (entry and #entry + EACH or 0)) then return 5 end
  write(made, entry)
  return 0
end

if not yours then return 0 end
if what == 'release' then
  forget(key)
  return 1
end
local made = 'A' .. print .. ARGV[9]
-- What does not fit is known to have been carried out all the same.
if ARGV[9] == '' or not room(#made - #entry) then made = 'N' .. print end
write(made, entry)
return 1
