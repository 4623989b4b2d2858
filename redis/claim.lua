-- Gives connections back, then takes backends for new ones: a whole batch in one step.
--
-- KEYS  1 state   2 order   3 the worker's lease   4 a canary's order   5 queue
--       then of each zone its order and that for a canary
-- ARGV  1 epoch of the lease; now and then, after a tab, also all that the worker holds after the releases (see held.lua)
--       2 number of claims m   3 number of releases k   4 "c" if the claims are a canary's, who has an algorithm of its
--       own for a share of them, else ""; where there are zones, or tickets, then with tabs before each: from whose
--       order they are served (a zone, or "": that of the whole pool), and all zones, joined by "\n"; where all claims
--       have tickets of the queue, then the worker, the size of the queue, how old a ticket may get (microseconds), and
--       the numbers of the tickets with spaces between; a "-" before a number: who had it waits no more
--       then k pairs: backend id, connections given back (a number), or that number, the mean and the longest time
--       to their answers in seconds, with spaces between, where somebody wants to know them
--       then, for each of the LAST claims that say more, rule \t candidates \t excluded: ids joined by "\n";
--       how many such claims there are follows from the length of ARGV. The rule is
--         ""   whoever is next in the order (a retry: not one of the excluded)
--         "f"  the first candidate with a free slot
--         "l"  the candidate with the fewest connections over its weight
--         "t"  the candidate with the least peak EWMA times its connections, the new one included
--         "s"  the candidate with the fewest connections over its weight, also of backups that stand by
--         "b" and a number x: the first candidate with fewer than x * weight * (all connections + 1)
--       Of equal ones the first is taken. After an "o" the first candidate is the one that the client belongs to: it
--       takes the claim if it is a member and has a free slot, also at weight 0 (drained, say; its worker does not ask
--       for one that is down); else the rule behind the "o" says which of the other candidates does.
--       When no candidate may take it, it goes to who is next in the order.
-- Returns { version, one entry per claim: backend id, or nil when no backend may take it }
--       and the numbers of the tickets that found the queue full, with spaces between, if there are any
--       { -1 } and nothing done when the lease is not at this epoch (reaped, or opened anew), or the pool has other zones
--
-- Atomic because a claim takes the lowest backend and moves it back: two workers that did this in two
-- steps would take the same one, and a cap would be exceeded. The count in the pool and the one
-- in the lease change together, so that whoever reaps the lease gives back exactly what it took. The epoch says that
-- the worker knows what it holds: what it gives back it was given, by a call at this epoch or by the one that opened it.
--
-- Commands in here do not grow with the batch: one ZRANGE, one LINDEX, one HMGET, one HSET, one ZADD, one RPUSH; more
-- only when a cap was reached, a removed backend was given back, a candidate was not free, reports are asked for, or
-- there are other orders (a canary's, those of zones), which follow. While somebody waits in the queue, a claim without
-- a ticket gets nil, save a retry, and there are some commands more.

-- What not every call needs is included where one has come to need it: functions and tables that are made and never
-- used would be a third of what a call for one request costs. Tables that stay empty are all the same one, NONE.

-- @include order

local state, lease, epoch, whole = KEYS[1], KEYS[3], ARGV[1], nil
if string.find(epoch, '\t', 1, true) then epoch, whole = string.match(epoch, '^([^\t]*)\t(.*)$') end
if call('LINDEX', lease, 0) ~= epoch then return { -1 } end
local order, prefix, canary, zone, zones, orders, line = KEYS[2], '_', false, '', '', nil, nil
local claims, releases = tonumber(ARGV[2]), tonumber(ARGV[3])
local first_spec = 5 + 2 * releases
local plain = claims - (#ARGV - first_spec + 1)

-- An empty array, for a large call with room for what it is going to hold: growing a dozen step by step costs more.
local large = claims + releases > 8
local function array()
  return large and {
    nil, nil, nil, nil, nil, nil, nil, nil, nil, nil, nil, nil, nil, nil, nil, nil, nil, nil, nil, nil, nil, nil, nil, nil,
    nil, nil, nil, nil, nil, nil, nil, nil, nil, nil, nil, nil, nil, nil, nil, nil, nil, nil, nil, nil, nil, nil, nil, nil,
  } or {}
end

-- What is known of backends stands in arrays, each backend by its number, in the order in which it was met.
local ids, index, total, known = array(), {}, 0, 0
local inflight, requests, weight, cap, saved = array(), array(), array(), array(), array()
local report, slow = NONE, NONE
local score, changed, moved, full, filled = array(), array(), array(), {}, {}
-- The peak EWMA of how long each takes, and when that was worked out.
local cost, since = NONE, NONE
-- Where each is at home, the score with which it left the order there, and is that a new one?
local home, kept, left_home = NONE, NONE, NONE
-- Connections under way at those who stand in the order of this zone, and by how many all zones' have changed.
local nearby, shifts = 0, NONE
local home_in, shift
if ARGV[4] ~= '' then
-- @include zones
  order, prefix, canary, zone, zones, orders, line = served_from(state, ARGV[4])
  home_in = home_of
end
if orders then
  home, kept, left_home, shifts = {}, {}, {}, {}
  function shift(n, more)
    if home[n] == zone then nearby = nearby + more end
    shifts[home[n]] = (shifts[home[n]] or 0) + more
  end
end
-- The scores with which backends have left the order that serves.
local left = canary and {} or zone == '' and saved or kept

local function number(id)
  local n = index[id]
  if not n then
    n = total + 1
    total, ids[n], index[id] = n, id, n
  end
  return n
end

-- The claims that say more: who may not be taken, how many names that can skip, and by which rule whom to take.
local excluded, rule, candidates, rest, names, ruled, timed = NONE, NONE, NONE, NONE, 0, 0, false
if plain < claims then excluded, rule, candidates, rest = {}, {}, {}, {} end
for j = first_spec, #ARGV do
  local spec = ARGV[j]
  local kind, wanted, without = string.match(spec, '^([^\t]*)\t([^\t]*)\t(.*)$')
  local claim = plain + j - first_spec + 1
  if without ~= '' then
    local set = {}
    for id in string.gmatch(without, '[^\n]+') do
      set[id] = true
      names = names + 1
    end
    excluded[claim] = set
  end
  if kind ~= '' then
    local list = {}
    if kind == 's' or string.find(kind, '^o?[lt]$') then
      for id in string.gmatch(wanted, '[^\n]+') do list[#list + 1] = number(id) end
    else
      -- Nearly always the first will do: the others are looked at when it does not.
      local first, others = string.match(wanted, '^([^\n]+)\n?(.*)$')
      if first then list[1] = number(first) end
      if others and others ~= '' then rest[claim] = others end
    end
    rule[claim], candidates[claim] = kind, list
    ruled = ruled + 1
    if kind == 't' or kind == 'ot' then timed = true end
  end
end

-- Releases come first: `give` is how many, by number.
local give, given, took, longest = {}, {}, NONE, NONE
for j = 5, first_spec - 1, 2 do
  local n, text = number(ARGV[j]), ARGV[j + 1]
  local back = tonumber(text)
  if not back then
    local count, mean, most = string.match(text, '^(%d+) (%S+) (%S+)$')
    if longest == NONE then took, longest = {}, {} end
    back, took[n], longest[n] = tonumber(count), tonumber(mean), tonumber(most)
    timed = true
  end
  if not give[n] then given[#given + 1] = n end
  give[n] = (give[n] or 0) + back
end

-- Picks only raise the score of what was picked, so as many candidates from the low end as there are claims and
-- names, and whatever a release moves, contain every pick of this batch.
local queue, front = {}, 1
local function rank(most)
  local ranked = call('ZRANGE', order, 0, most - 1, 'WITHSCORES')
  for j = 1, #ranked / 2 do
    local n = number(ranked[2 * j - 1])
    queue[j] = n
    if not moved[n] then score[n] = tonumber(ranked[2 * j]) end
  end
end
if claims > ruled then rank(claims - ruled + names) end

local first, fields = 1, { '_v', canary and '_ca' or '_a', prefix .. 'q', prefix .. 'f', prefix .. 'l', '_t',
  canary and '_a' or '_ca', prefix .. 'u', '_z', '_w' }
if zone ~= '' then fields[11] = '_o:' .. zone .. ':t' end
-- @include records
if (seen[9] or '') ~= zones then return { -1 } end

local version, own_kind, other_kind = tonumber(seen[1]) or 0, seen[2], seen[7]
local least, weighted, reported = rules(own_kind)
local turns, floor, last = tonumber(seen[3]) or 0, tonumber(seen[4]) or 0, seen[5] or ''
local everything, waiting = tonumber(seen[6]) or 0, seen[10]
nearby = tonumber(seen[11]) or 0
if timed and cost == NONE then cost, since = {}, {} end
local now = (timed or reported or seen[8]) and seconds()
-- Is anybody in a slow start, or was since the order was last used?
local ramping = seen[8] and now < tonumber(seen[8])
local ramped = seen[8] and not ramping

-- May backends come in of whom nothing has been read yet, or be picked who are neither in the queue nor given back?
local searching = ruled > 0 or waiting or line
local read_more
if reported or ramping or orders then
-- @include more
end

local read_on, free
if searching then
  -- Reads what is not known yet of the backends that have a number.
  function read_on()
    local first, fields = known + 1, {}
-- @include records
    if read_more then read_more(first) end
  end

  function free(n)
    return weight[n] > 0 and (cap[n] == 0 or inflight[n] < cap[n])
  end
end

-- The connections of a backend, over its weight or not, and over the share of it that a slow start allows so far.
local function load_of(n, per_weight)
  local load = inflight[n] / (per_weight and weight[n] or 1)
  return ramping and load / ramp(slow[n], now) or load
end

-- Whom the worker was given, and whom it gave back: the entry in its lease.
local taken, returned = array(), array()

-- Releases. A backend that is `moved` is not where the queue says any more.
for j = 1, #given do
  local n = given[j]
  local back = give[n]
  if back > 0 then
    if longest[n] and weight[n] ~= GONE then
      -- A peak counts at once and fades (Finagle's PeakEwma).
      local keep = cost[n] and math.exp(-math.max(0, now - since[n]) / DECAY)
      cost[n], since[n] = math.max(keep and cost[n] * keep + took[n] * (1 - keep) or 0, longest[n]), now
    end
    changed[n] = true
    for _ = 1, back do returned[#returned + 1] = ids[n] end
    local count = inflight[n]
    local still = count > back and count - back or 0
    filled[n] = cap[n] > 0 and count >= cap[n]
    inflight[n] = still
    everything = everything - (count - still)
    if orders then shift(n, still - count) end
    if weight[n] > 0 and (zone == '' or home[n] == zone) and (cap[n] == 0 or still < cap[n]) then
      if least then
        turns = turns + 1
        score[n] = load_of(n, weighted) + turns * STEP
        moved[n] = true
      elseif filled[n] then
        score[n] = entry(state, prefix, weighted, weight[n], floor, last, ids[n], left[n] or NEVER)
        moved[n] = true
      end
    end
  end
end

-- Who waits is first, and served in turn.
local barred, tickets, refused, call_up_those = NONE, NONE, NONE, nil
if waiting or line then
-- @include queue
  call_up_those = call_up
  barred, tickets, refused = admit(KEYS[5], line, claims, excluded, function(most)
    -- Each backend in the order has a free slot, and those are known that the releases have freed.
    for _, id in ipairs(call('ZRANGE', order, 0, most - 1)) do number(id) end
    read_on()
    local slots = 0
    for n = 1, total do
      if free(n) then slots = slots + (cap[n] > 0 and cap[n] - inflight[n] or most) end
    end
    return math.min(slots, most)
  end)
end

local function count_pick(n)
  inflight[n], requests[n] = inflight[n] + 1, requests[n] + 1
  everything = everything + 1
  if orders then shift(n, 1) end
  changed[n], taken[#taken + 1] = true, ids[n]
end

local answer, late = { version }, 0
if ruled > 0 then
-- @include candidates
end

local heap, size, arrival, arrivals, push, sink, drop = NONE, 0, NONE, 0, nil, nil, nil
local next_ones = claims - ruled + late
if next_ones > 1 or next_ones > 0 and (names > 0 or next(moved)) then
-- @include heap
  for n = 1, total do
    if moved[n] and not full[n] then push(n) end
  end
end

-- Claims that go to who is next.
for claim = 1, claims do
  local after_all = rule[claim] and not answer[claim + 1]
  if barred[claim] then
    answer[claim + 1] = false
  elseif after_all or not rule[claim] then
    local without, aside, n, again = excluded[claim], nil, nil, nil
    repeat
      n = queue[front]
      while n and moved[n] do
        front = front + 1
        n = queue[front]
      end
      again = size > 0 and (not n or score[heap[1]] < score[n])
      if again then n = heap[1] end
      local skip = n and without and without[ids[n]]
      if skip then
        if again then
          drop()
        else
          moved[n] = true
        end
        aside = aside or {}
        aside[#aside + 1] = n
      end
    until not skip
    if n then
      -- A retry that had to pass others over says nothing about how far the turn has come.
      if not without then
        floor, last = score[n], ids[n]
      end
      count_pick(n)
      moved[n] = true
      if least then
        turns = turns + 1
        score[n] = load_of(n, weighted) + turns * STEP
      else
        local counts = weighted and weight[n] or 1
        if reported then counts = counts * share(report[n], now) end
        if ramping then counts = counts * ramp(slow[n], now) end
        score[n] = score[n] + 1 / counts
      end
      if cap[n] > 0 and inflight[n] >= cap[n] then
        full[n], left[n] = true, score[n]
        if again then drop() end
      elseif again then
        arrivals = arrivals + 1
        arrival[n] = arrivals
        sink(n)
      elseif push then
        push(n)
      end
    end
    answer[claim + 1] = n and ids[n] or false
    if aside then
      for j = 1, #aside do push(aside[j]) end
    end
  end
end

-- Who became full by a candidate's claim leaves with the score it stands at, which nobody has read yet.
if ruled > 0 and not least then
  local unread = {}
  for n = 1, total do
    if full[n] and not score[n] then unread[#unread + 1] = ids[n] end
  end
  local scores = many('ZMSCORE', order, unread)
  for j = 1, #unread do score[index[unread[j]]] = tonumber(scores[j]) end
  for n = 1, total do
    if full[n] then left[n] = score[n] or left[n] end
  end
end

local overdue = NONE
if (orders or other_kind) and next(changed) then
  overdue = {}
-- @include follow
end

-- What changed, in one command per key.
local sets, adds, leave, gone = array(), array(), {}, {}
for n = 1, total do
  if changed[n] then
    local id = ids[n]
    if weight[n] == GONE and inflight[n] == 0 then
      for _, prefix in ipairs({ '', '_s', '_u', '_o' }) do gone[#gone + 1] = prefix .. id end
    else
      local at = #sets
      sets[at + 1] = id
      sets[at + 2] = cost[n] and pack(TIMED, inflight[n], requests[n], weight[n], cap[n], saved[n], cost[n], since[n])
        or pack(RECORD, inflight[n], requests[n], weight[n], cap[n], saved[n])
    end
    if left_home[n] or (full[n] and left == kept) then
      local at = #sets
      sets[at + 1], sets[at + 2] = '_z' .. id, pack(HOME, kept[n]) .. home[n]
    end
    if full[n] then
      leave[#leave + 1] = id
    elseif moved[n] then
      local at = #adds
      adds[at + 1], adds[at + 2] = score[n], id
    end
  end
end
if next(changed) then
  local at = #sets
  sets[at + 1], sets[at + 2] = '_t', everything
  if least then
    sets[at + 3], sets[at + 4] = prefix .. 'q', turns
  else
    sets[at + 3], sets[at + 4], sets[at + 5], sets[at + 6] = prefix .. 'f', floor, prefix .. 'l', last
  end
end
if whole then
  call('DEL', lease)
  call('RPUSH', lease, epoch, whole)
  returned = NONE
end
if #taken + #returned > 0 then
  call('RPUSH', lease, table.concat(taken, '\t') .. '\n' .. table.concat(returned, '\t'))
end
many('HSET', state, sets, 2)
many('ZADD', order, adds, 2)
many('ZREM', order, leave)
many('HDEL', state, gone)
for name, more in pairs(shifts) do
  -- Nobody serves a zone that is "" or begins with "-".
  if more ~= 0 and string.find(name, '^%w') then call('HINCRBY', state, '_o:' .. name .. ':t', more) end
end

if ramped or least and turns >= STEPS or weighted and floor >= CYCLES or #overdue > 0 then
-- @include renumber
end

if waiting or line then
  local served = {}
  for claim, ticket in ipairs(tickets) do
    if answer[claim + 1] then served[#served + 1] = ticket end
  end
  many('ZREM', KEYS[5], served)
  if line or #given > 0 then call_up_those(state, KEYS[2], KEYS[5]) end
  if #refused > 0 then answer[claims + 2] = table.concat(refused, ' ') end
end
return answer
