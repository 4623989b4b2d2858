-- Gives connections back, then takes backends for new ones: a whole batch in one step.
--
-- KEYS  1 state   2 order   3 the worker's lease
-- ARGV  1 epoch of the lease   2 number of claims m   3 number of releases k
--       then k pairs: backend id, connections given back
--       then, for each of the LAST claims that must not get certain backends (a retry), their ids
--       joined by "\n"; how many such claims there are follows from the length of ARGV
-- Returns { version, one entry per claim: backend id, or nil when no backend may take it }
--       { -1 } and nothing done when the lease is not at this epoch (reaped, or opened anew)
--
-- Atomic because a claim takes the lowest backend and moves it back: two workers that did this in two
-- steps would take the same one, and a cap would be exceeded. The count in the pool and the one
-- in the lease change together, so that whoever reaps the lease gives back exactly what it took.
--
-- Commands in here do not grow with the batch: one ZRANGE, two HMGET, two HSET, one ZADD; ZREM and HDEL
-- only when a cap was reached or a removed backend was given back. A lease keeps fields that
-- reached 0: deleting them would be one more command in every call, and there are at most as many
-- as the pool has backends.

-- @include order

local state, order, lease = KEYS[1], KEYS[2], KEYS[3]
local claims, releases = tonumber(ARGV[2]), tonumber(ARGV[3])
local first_exclusion = 4 + 2 * releases
local plain = claims - (#ARGV - first_exclusion + 1)

-- Who may not be taken by which of the last claims, and how many names that can skip.
local exclusions, names = {}, 0
for j = first_exclusion, #ARGV do
  local set = {}
  for id in string.gmatch(ARGV[j], '[^\n]+') do
    set[id] = true
    names = names + 1
  end
  exclusions[#exclusions + 1] = set
end

-- Picks only raise the score of what was picked, so `claims + names` candidates from the low end,
-- and whatever a release moves, contain every pick of this batch.
local ranked = claims > 0 and call('ZRANGE', order, 0, claims + names - 1, 'WITHSCORES') or {}

-- The backends of this batch are numbered: first those given back, then the other candidates.
local ids, index, give, released = {}, {}, {}, 0
local fields, own = { '_v', '_a', '_q', '_f', '_l' }, { '_' }
for j = 4, first_exclusion - 1, 2 do
  local id = ARGV[j]
  local n = index[id]
  if n then
    give[n] = give[n] + tonumber(ARGV[j + 1])
  else
    released = released + 1
    ids[released], fields[released + 5], own[released + 1] = id, id, id
    index[id], give[released] = released, tonumber(ARGV[j + 1])
  end
end
local total, queue, queued, score = released, {}, #ranked / 2, {}
for j = 1, queued do
  local id = ranked[2 * j - 1]
  local n = index[id]
  if not n then
    n = total + 1
    ids[n], fields[n + 5], own[n + 1] = id, id, id
    total = n
  end
  queue[j], score[n] = n, tonumber(ranked[2 * j])
end

local held = many('HMGET', lease, own)
if held[1] ~= ARGV[1] then return { -1 } end
local seen = many('HMGET', state, fields)
local least, weighted = rules(seen[2])
local turns, floor, last = tonumber(seen[3]) or 0, tonumber(seen[4]) or 0, seen[5] or ''

local inflight, requests, weight, cap, saved, mine = {}, {}, {}, {}, {}, {}
for n = 1, total do
  local record = seen[n + 5]
  if record then
    inflight[n], requests[n], weight[n], cap[n], saved[n] = unpack_record(RECORD, record)
  else
    inflight[n], requests[n], weight[n], cap[n], saved[n] = 0, 0, GONE, 0, NEVER
  end
  mine[n] = tonumber(held[n + 1]) or 0
end

-- What is picked or moved by a release stands in a heap beside the queue of candidates: the queue comes
-- sorted, so that only a backend picked a second time costs more than one comparison. Of equal scores the
-- one that has waited longer is first: in round robin that is the sequence of the names.
local heap, size, arrival, arrivals = {}, 0, {}, 0

local function before(one, other)
  local a, b = score[one], score[other]
  if a ~= b then return a < b end
  return arrival[one] < arrival[other]
end

local function push(n)
  size = size + 1
  arrivals = arrivals + 1
  arrival[n] = arrivals
  local hole = size
  while hole > 1 do
    local parent = (hole - hole % 2) / 2
    if not before(n, heap[parent]) then break end
    heap[hole] = heap[parent]
    hole = parent
  end
  heap[hole] = n
end

-- Puts n at the top of the heap in place of what is there, and lets it sink.
local function sink(n)
  local hole, child = 1, 2
  while child <= size do
    if child < size and before(heap[child + 1], heap[child]) then child = child + 1 end
    if not before(heap[child], n) then break end
    heap[hole] = heap[child]
    hole, child = child, 2 * child
  end
  heap[hole] = n
end

local function drop()
  local last = heap[size]
  heap[size] = nil
  size = size - 1
  if size > 0 then sink(last) end
end

-- Releases. A candidate that is `moved` is not where the queue says any more.
local changed, moved = {}, {}
for n = 1, released do
  local back = give[n]
  if back > mine[n] then back = mine[n] end
  if back > 0 then
    changed[n] = true
    mine[n] = mine[n] - back
    local count = inflight[n]
    local left = count > back and count - back or 0
    inflight[n] = left
    if weight[n] > 0 and (cap[n] == 0 or left < cap[n]) then
      if least then
        turns = turns + 1
        score[n] = left / (weighted and weight[n] or 1) + turns * STEP
        moved[n] = true
        push(n)
      elseif cap[n] > 0 and count >= cap[n] then
        score[n] = entry(state, weighted, weight[n], floor, last, ids[n], saved[n])
        moved[n] = true
        push(n)
      end
    end
  end
end

-- Claims.
local answer, front, full = { tonumber(seen[1]) or 0 }, 1, {}
for claim = 1, claims do
  local excluded, aside, n, again = exclusions[claim - plain], nil, nil, nil
  repeat
    n = queue[front]
    while n and moved[n] do
      front = front + 1
      n = queue[front]
    end
    again = size > 0 and (not n or score[heap[1]] < score[n])
    if again then n = heap[1] end
    local skip = n and excluded and excluded[ids[n]]
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
    if not excluded then
      floor, last = score[n], ids[n]
    end
    local load = inflight[n] + 1
    inflight[n], requests[n], mine[n] = load, requests[n] + 1, mine[n] + 1
    if least then
      turns = turns + 1
      score[n] = load / (weighted and weight[n] or 1) + turns * STEP
    elseif weighted then
      score[n] = score[n] + 1 / weight[n]
    else
      score[n] = score[n] + 1
    end
    changed[n], moved[n] = true, true
    if cap[n] > 0 and load >= cap[n] then
      full[n], saved[n] = true, score[n]
      if again then drop() end
    elseif again then
      arrivals = arrivals + 1
      arrival[n] = arrivals
      sink(n)
    else
      push(n)
    end
  end
  answer[claim + 1] = n and ids[n] or false
  if aside then
    for j = 1, #aside do push(aside[j]) end
  end
end

-- What changed, in one command per key.
local sets, leases, adds, leave, gone, free = {}, {}, {}, {}, {}, {}
for n = 1, total do
  if changed[n] then
    local id = ids[n]
    if weight[n] == GONE and mine[n] == 0 then
      free[#free + 1] = id
    else
      local at = #leases
      leases[at + 1], leases[at + 2] = id, mine[n]
    end
    if weight[n] == GONE and inflight[n] == 0 then
      gone[#gone + 1] = id
    else
      local at = #sets
      sets[at + 1], sets[at + 2] = id, pack(RECORD, inflight[n], requests[n], weight[n], cap[n], saved[n])
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
  if least then
    sets[at + 1], sets[at + 2] = '_q', turns
  else
    sets[at + 1], sets[at + 2], sets[at + 3], sets[at + 4] = '_f', floor, '_l', last
  end
  many('HSET', state, sets, 2)
  many('HSET', lease, leases, 2)
  many('ZADD', order, adds, 2)
  many('ZREM', order, leave)
  many('HDEL', state, gone)
  many('HDEL', lease, free)
end

-- Numbers the order anew, keeping its sequence, before ties or deadlines outgrow a double: once in
-- millions of picks, so that its cost, which is that of all members, does not count.
if least and turns >= STEPS then
  ranked = call('ZRANGE', order, 0, -1)
  seen = many('HMGET', state, ranked)
  adds = {}
  for j = 1, #ranked do
    local load, _, per = unpack_record(RECORD, seen[j])
    adds[2 * j - 1], adds[2 * j] = load / (weighted and per or 1) + j * STEP, ranked[j]
  end
  call('HSET', state, '_q', #ranked)
  many('ZADD', order, adds, 2)
elseif weighted and not least and floor >= CYCLES then
  local back = math.floor(floor)
  ranked, adds, sets = call('ZRANGE', order, 0, -1, 'WITHSCORES'), {}, { '_f', floor - back }
  for j = 1, #ranked, 2 do adds[j], adds[j + 1] = ranked[j + 1] - back, ranked[j] end
  seen = call('HGETALL', state)
  for j = 1, #seen, 2 do
    if string.sub(seen[j], 1, 1) ~= '_' then
      local count, ever, per, most, left = unpack_record(RECORD, seen[j + 1])
      if left ~= NEVER then
        sets[#sets + 1], sets[#sets + 2] = seen[j], pack(RECORD, count, ever, per, most, left - back)
      end
    end
  end
  many('HSET', state, sets, 2)
  many('ZADD', order, adds, 2)
end
return answer
