-- Gives connections back as `claim` does, some of whose requests have failed, and says which backends are outliers.
--
-- KEYS  those of claim.lua
-- ARGV  1 failures in a row that make an outlier, 0: any number do not   2 share of successes, 0 to 1, below which a
--       backend is one, among   3 so many requests at least within   4 so many seconds   5 number of backends n
--       then n triples: backend id, how many of the released have failed, how many say nothing of it (the client left)
--       then those of claim.lua, for no claims
-- Returns { version }, then three values for each outlier: its id, failures, and the requests among which these were,
--         0 when they came in a row
--       { -1 } and nothing done when the lease is not at this epoch, as `claim`
--
-- Nobody reports successes: requests ever less those in flight have ended, and what has not failed of them was good. That
-- is exact for the fleet because a failure is counted in the step that gives its connection back. Successes of one
-- call count as having come before its failures.
--
-- An outlier's counts begin anew, and it is told of once a second at most: whoever is told ejects it by `commit`, where
-- it is seen whether it may be.

-- @include order

local function claim(KEYS, ARGV)
-- @include claim
end

local AGAIN = 1

local most, rate, least, window, n = unpack(ARGV, 1, 5)
most, rate, least, window, n = tonumber(most), tonumber(rate), tonumber(least), tonumber(window), tonumber(n)
local given = {}
for j = 6 + 3 * n, #ARGV do given[#given + 1] = ARGV[j] end
local answer = claim(KEYS, given)
if answer[1] == -1 then return answer end

local state, now, fields = KEYS[1], seconds(), {}
for j = 1, n do
  fields[2 * j - 1], fields[2 * j] = ARGV[3 * j + 3], '_o' .. ARGV[3 * j + 3]
end
local seen, sets = many('HMGET', state, fields), {}
for j = 1, n do
  local id, failed, void = ARGV[3 * j + 3], tonumber(ARGV[3 * j + 4]), tonumber(ARGV[3 * j + 5])
  local inflight, requests, weight = 0, 0, GONE
  if seen[2 * j - 1] then inflight, requests, weight = unpack_record(RECORD, seen[2 * j - 1]) end
  if weight ~= GONE then
    local row, bad, voids, good, from, good_then, bad_then, told, due, permit = 0, 0, 0, NEVER, NEVER, 0, 0, 0, 0, 0
    if seen[2 * j] then
      row, bad, voids, good, from, good_then, bad_then, told, due, permit = unpack_record(OUTLIER, seen[2 * j])
    end
    local successes = requests - inflight - bad - failed - voids - void
    if successes ~= good then row = 0 end
    row = row + failed
    -- Below what it was when counts were lost: of the store, of a backend that was removed and came back.
    if from == NEVER or now - from >= window or now < from or successes < good_then then
      from, good_then, bad_then = now, successes, bad
    end
    bad, voids = bad + failed, voids + void
    local wrong, all = bad - bad_then, bad - bad_then + successes - good_then
    if failed > 0 and now - told >= AGAIN then
      local in_row = most > 0 and row >= most
      if in_row or (all >= least and (all - wrong) / all < rate) then
        local at = #answer
        answer[at + 1], answer[at + 2], answer[at + 3] = id, in_row and row or wrong, in_row and 0 or all
        row, from, told = 0, NEVER, now
      end
    end
    local at = #sets
    sets[at + 1] = '_o' .. id
    sets[at + 2] = pack(OUTLIER, row, bad, voids, successes, from, good_then, bad_then, told, due, permit)
  end
end
many('HSET', state, sets, 2)
return answer
