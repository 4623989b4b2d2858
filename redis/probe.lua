-- Takes an ejected backend for one request, if its time is over and no other request of the fleet probes it; else
-- whom `claim` takes.
--
-- KEYS  those of claim.lua
-- ARGV  1 the backend   2 until when it is ejected, seconds since the epoch   3 version of the pool of which that is known
--       4 seconds after which another request may probe it, if nothing has been heard of this one
--       5 what the claim asks for if it may not probe: as a claim of claim.lua, "" for whoever is next
--       then those of claim.lua, for exactly one claim that says nothing more
-- Returns what claim.lua does
--
-- Atomic because permit and claim are one: in two steps, two requests would be let through, or a permit would be
-- held by a request that got another backend. A result of the probe changes the version, or until when the backend is
-- ejected, so that a permit need not be given back.

-- @include order

local function claim(KEYS, ARGV)
-- @include claim
end

local state, id, due = KEYS[1], ARGV[1], tonumber(ARGV[2])
local seen, now = call('HMGET', state, '_v', '_o' .. id), seconds()
local outlier = { 0, 0, 0, NEVER, NEVER, 0, 0, 0, 0, 0 }
if seen[2] then outlier = { unpack_record(OUTLIER, seen[2]) } end
local free = outlier[9] ~= due or now >= outlier[10]
local permitted = seen[1] == ARGV[3] and now >= due and free

local given, asked = {}, ARGV[5]
for j = 6, #ARGV do given[#given + 1] = ARGV[j] end
-- Who is passed over by name does not stand behind those in the queue: they wait for others.
if permitted then asked = 'o\t' .. id .. '\t_' end
if asked ~= '' then given[#given + 1] = asked end
local answer = claim(KEYS, given)
if permitted and answer[2] == id then
  outlier[9], outlier[10] = due, now + tonumber(ARGV[4])
  call('HSET', state, '_o' .. id, pack(OUTLIER, unpack(outlier, 1, 10)))
end
return answer
