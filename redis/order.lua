-- What the scripts share: where a backend stands in the order of its pool.
--
-- The order is a sorted set of the backends that may take a request now; the lowest score is next, ties
-- by name. Fields of the state hash read and written here (no backend's id begins with "_"):
--
--   _a     how the order is kept: "turns", "weighted-turns", "reported-turns", "load" or "weighted-load"
--   _f     floor: the score the last pick was made at, the virtual time of a fair queue
--   _l     whom that pick took, for round robin: how far the turn has come in this round
--   _q     picks and releases since the order was numbered anew; breaks ties of least-connections
--   _p     how many backends have entered an order of weighted turns
--   _t     connections under way at all backends of the pool
--   <id>   five doubles, little-endian (see RECORD), or seven: one field instead of as many halves what a claim costs
--   _c...  while a second algorithm gets a share of the claims (a canary), its own _a, _f, _l, _q and _p
--   _z     the zones that backends of the pool are in, joined by "\n"; there is none where none is
--   _z<id> where it stands among the zones (see HOME), if it is in one
--   _o:<zone>:...   of the order of a zone, its own f, l, q, p and u; and t: connections under way at who stands in it
--   _oc:<zone>:...  the same of the zone's order for a canary, but t
--   _s<id> what the backend has reported (see REPORT), if it has
--   _u     until when any backend is in its slow start; _cu: the same, for the order of a canary. Gone when it is over
--   _u<id> its last slow start (see RAMP), if it had one
--   _o<id> what has become of its requests (see OUTLIER), once one has failed
--   _w     how many wait in the queue (see queue.lua); gone when nobody does
--   _b     when the pool last began to serve, after nobody was eligible
--
-- A backend stands in the order exactly when its weight is > 0 and its cap is 0 or above its in-flight. That holds
-- for the order of a canary, too; and for those of a zone when the backend is at home there besides. An order says
-- only who is next: connections, caps and reports are one truth over all of them.

local call, tonumber, pack, unpack_record = redis.call, tonumber, struct.pack, struct.unpack

-- in flight, requests ever, weight (0: takes no new traffic; GONE: not a member any more, but still has
-- connections; GONE - its weight: a backup that stands by, for requests that all others have failed), cap of in flight (0: none), the score with which it left the order (NEVER: it has not)
local RECORD, SHORT = '<ddddd', 40
-- Then, if somebody measures how long it takes to answer: its peak EWMA in seconds, and when that was worked out, in
-- seconds since the epoch
local TIMED = '<ddddddd'
-- share of its weight that counts, 0.01 to 1; smoothed share; when that was worked out, until when it counts, and
-- when the first report came
local REPORT = '<ddddd'
-- Seconds in which the memory of a slow answer fades to 1/e.
local DECAY = 10
-- Slow start: from when, until when, in seconds since the epoch
local RAMP = '<dd'
-- The score with which a backend left the order of its zone (NEVER: it has not), then the zone's name, after a "-"
-- while the backend does not serve it (it is down, say, or a backup).
local HOME, NAME = '<d', 9
-- Passive health: failures in a row; failures ever, requests ever that say nothing of it, and successes ever as of the
-- last report; when the window of the success rate began, successes and failures ever as of then; when it was last
-- found to be an outlier; until when it is ejected for whom a probe was permitted last, and until when that counts
local OUTLIER = '<dddddddddd'
local GONE, NEVER = -1, -1
-- The share of its weight with which a slow start begins.
local SLOWEST = 0.1

-- Load and tie share a double. With weights up to 1000 two different loads are at least
-- 1/(1000 * 999) > 2^-20 apart, so 2^24 steps of 2^-44 never reach from one to the other, and a load
-- below 512 leaves the lowest step representable.
local STEP = 2 ^ -44
local STEPS = 2 ^ 24
-- Deadlines of weighted round robin are sums of 1/weight; kept below 2^20 (one per full cycle of the
-- weights) their rounding errors stay below one turn in total.
local CYCLES = 2 ^ 20
-- unpack() pushes its results on the Lua stack, which ends at about 8000.
local CHUNK = 4000
local GOLDEN = (5 ^ 0.5 - 1) / 2
-- A table that nobody writes to.
local NONE = {}

-- Is the order one of loads, are weights looked at, and do reports change them?
local function rules(kind)
  local reported = kind == 'reported-turns'
  return kind == 'load' or kind == 'weighted-load', reported or kind == 'weighted-turns' or kind == 'weighted-load', reported
end

local function seconds()
  local now = call('TIME')
  return now[1] + now[2] / 1000000
end

-- The share of its weight that a backend has by what it reported, if that is still to be believed.
local function share(report, now)
  if not report then return 1 end
  local counts, _, _, till = unpack_record(REPORT, report)
  return now < till and counts or 1
end

-- The share of its weight that counts so far in a slow start: from SLOWEST to 1, linear over time.
local function ramp(field, now)
  if not field then return 1 end
  local from, till = unpack_record(RAMP, field)
  if now >= till or now < from then return 1 end -- before it: the clock was put back
  return SLOWEST + (1 - SLOWEST) * (now - from) / (till - from)
end

-- One command over any number of arguments, in as few calls as the stack allows; `group` is how many
-- arguments belong together. Returns the answer, put together where it is an array.
local function many(command, key, args, group)
  local count = #args
  if count == 0 then return NONE end
  if count <= CHUNK then return call(command, key, unpack(args)) end
  local size, all = CHUNK - CHUNK % (group or 1), {}
  for first = 1, count, size do
    local part = call(command, key, unpack(args, first, math.min(first + size - 1, count)))
    if type(part) == 'table' then
      for j = 1, #part do all[#all + 1] = part[j] end
    end
  end
  return all
end

-- The score with which a backend enters an order of turns; `prefix` is that of the order's fields. One that was away
-- neither catches up in a burst nor gets a second turn for coming back at once.
--
-- Round robin goes through the names in every round: whose name has been passed waits for the next one, so
-- that all rounds keep one sequence and counts differ by at most one from whenever they are counted.
--
-- With weights, one that has been there goes on at its own next turn that is not in the past: backends that
-- return together keep apart. A newcomer gets a fraction of its step that no other has (multiples of
-- the golden ratio spread most evenly), or equal weights would always take their turns in one burst.
local function entry(state, prefix, weighted, weight, floor, last, id, saved)
  -- Does one name come after another where a sorted set orders them? By bytes; Lua's own `<` follows the
  -- locale that the server was started in.
  local function comes_after(one, other)
    for j = 1, math.min(#one, #other) do
      local a, b = string.byte(one, j), string.byte(other, j)
      if a ~= b then return a > b end
    end
    return #one > #other
  end
  if not weighted then return math.max(saved, comes_after(id, last) and floor or floor + 1) end
  local step = 1 / weight
  if saved == NEVER then return floor + (call('HINCRBY', state, prefix .. 'p', 1) * GOLDEN % 1) * step end
  if saved >= floor then return math.min(saved, floor + step) end -- its weight may have grown meanwhile
  return saved + math.ceil((floor - saved) / step) * step
end
