-- Gives connections back, then takes backends for new ones: a whole batch in one step.
--
-- KEYS  1 state   2 order   3 the worker's lease   4 a canary's order   5 queue
--       then of each zone its order and that for a canary
-- ARGV  1 epoch of the lease   2 number of claims m   3 number of releases k   4 "c" if the claims are a canary's,
--       who has an algorithm of its own for a share of them, else ""; where there are zones, or tickets, then with tabs
--       before each: from whose order they are served (a zone, or "": that of the whole pool), and all zones, joined
--       by "\n"; where all claims have tickets of the queue, then the worker, the size of the queue, how old a ticket may get
--       (microseconds), and the numbers of the tickets with spaces between; a "-" before a number: who had it waits no more
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
-- in the lease change together, so that whoever reaps the lease gives back exactly what it took.
--
-- Commands in here do not grow with the batch: one ZRANGE, two HMGET, two HSET, one ZADD; more only when a cap was
-- reached, a removed backend was given back, a candidate was not free, latencies or reports are asked for, or there are
-- other orders (a canary's, those of zones), which follow. A lease
-- keeps fields that reached 0: deleting them would be one more command in every call, and there are at
-- most as many as the pool has backends. While somebody waits in the queue, a claim without a ticket gets nil, save
-- a retry, and there are some commands more.

-- @include order
-- @include queue

-- What an answer may cost at most that nobody has seen yet: a newcomer gets one request, not all of them.
local UNSEEN = 1e6

local state, lease = KEYS[1], KEYS[3]
local order, prefix, canary, zone, zones, orders, line = served_from(state, ARGV[4])
local claims, releases = tonumber(ARGV[2]), tonumber(ARGV[3])
local first_spec = 5 + 2 * releases
local plain = claims - (#ARGV - first_spec + 1)

-- What is known of backends stands in arrays, each backend by its number, in the order in which it was met.
local ids, index, total, known = {}, {}, 0, 0
local inflight, requests, weight, cap, saved, mine, report, latency, slow = {}, {}, {}, {}, {}, {}, {}, {}, {}
local score, changed, moved, full, filled, slower = {}, {}, {}, {}, {}, {}
-- Where each is at home, the score with which it left the order there, and is that a new one?
local home, kept, left_home = {}, {}, {}
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
local excluded, rule, candidates, rest, names, ruled, timed = {}, {}, {}, {}, 0, 0, false
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
local give, given, took, longest = {}, {}, {}, {}
for j = 5, first_spec - 1, 2 do
  local n, text = number(ARGV[j]), ARGV[j + 1]
  local back = tonumber(text)
  if not back then
    local count, mean, most = string.match(text, '^(%d+) (%S+) (%S+)$')
    back, took[n], longest[n] = tonumber(count), tonumber(mean), tonumber(most)
    timed = true
  end
  if not give[n] then given[#given + 1] = n end
  give[n] = (give[n] or 0) + back
end

-- Picks only raise the score of what was picked, so as many candidates from the low end as there are claims and
-- names, and whatever a release moves, contain every pick of this batch.
local queue, queued, front = {}, 0, 1
local function rank(most)
  local ranked = call('ZRANGE', order, 0, most - 1, 'WITHSCORES')
  queued = #ranked / 2
  for j = 1, queued do
    local n = number(ranked[2 * j - 1])
    queue[j] = n
    if not moved[n] then score[n] = tonumber(ranked[2 * j]) end
  end
end
if claims > ruled then rank(claims - ruled + names) end

local seen, version, least, weighted, reported, turns, floor, last, everything, now, own_kind, other_kind, ramping, ramped
local waiting
-- Connections under way at those who stand in the order of this zone, and by how many all zones' have changed.
local nearby, shifts = 0, {}

-- Reads what is not known yet of the backends that have a number. False: the lease, or the zones, are others.
local function read_on()
  local first, fields, own = known + 1, {}, {}
  if known == 0 then
    fields = { '_v', canary and '_ca' or '_a', prefix .. 'q', prefix .. 'f', prefix .. 'l', '_t',
      canary and '_a' or '_ca', prefix .. 'u', '_z', '_w' }
    if zone ~= '' then fields[11] = '_o:' .. zone .. ':t' end
    own = { '_' }
  end
  local skip, skip_own = #fields, #own
  for n = first, total do
    fields[skip + n - known], own[skip_own + n - known] = ids[n], ids[n]
  end
  local held = many('HMGET', lease, own)
  if known == 0 and held[1] ~= ARGV[1] then return false end
  seen = many('HMGET', state, fields)
  if known == 0 then
    if (seen[9] or '') ~= zones then return false end
    nearby = tonumber(seen[11]) or 0
    version = tonumber(seen[1]) or 0
    own_kind, other_kind = seen[2], seen[7]
    least, weighted, reported = rules(own_kind)
    turns, floor, last = tonumber(seen[3]) or 0, tonumber(seen[4]) or 0, seen[5] or ''
    everything, waiting = tonumber(seen[6]) or 0, seen[10]
    if timed or reported or seen[8] then now = seconds() end
    -- Is anybody in a slow start, or was since the order was last used?
    ramping = seen[8] and now < tonumber(seen[8])
    ramped = seen[8] and not ramping
  end
  for n = first, total do
    local record = seen[skip + n - known]
    if record then
      inflight[n], requests[n], weight[n], cap[n], saved[n] = unpack_record(RECORD, record)
    else
      inflight[n], requests[n], weight[n], cap[n], saved[n] = 0, 0, GONE, 0, NEVER
    end
    mine[n] = tonumber(held[skip_own + n - known]) or 0
  end
  for prefix, into in pairs({ _e = timed and latency or nil, _s = reported and report or nil, _u = ramping and slow or nil,
    _z = zones ~= '' and home or nil }) do
    local more = {}
    for n = first, total do more[n - known] = prefix .. ids[n] end
    local found = many('HMGET', state, more)
    for n = first, total do into[n] = found[n - known] end
  end
  if zones ~= '' then
    for n = first, total do home[n], kept[n] = home_of(home[n]) end
  end
  known = total
  return true
end
if not read_on() then return { -1 } end

-- What a pick counts: 1 over the weight that the backend has by now.
local function step(n)
  local counts = weighted and weight[n] or 1
  if reported then counts = counts * share(report[n], now) end
  if ramping then counts = counts * ramp(slow[n], now) end
  return 1 / counts
end

-- The connections of a backend, over its weight or not, and over the share of it that a slow start allows so far.
local function load_of(n, per_weight)
  local load = inflight[n] / (per_weight and weight[n] or 1)
  return ramping and load / ramp(slow[n], now) or load
end

-- Is it one of those who stand in the order, or will when they are free again?
local function belongs(n)
  return weight[n] > 0 and (zone == '' or home[n] == zone)
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
  local bottom = heap[size]
  heap[size] = nil
  size = size - 1
  if size > 0 then sink(bottom) end
end

-- The peak EWMA of a backend's latency as it is now: a peak counts at once and fades (Finagle's PeakEwma).
local function latency_of(n)
  if not latency[n] then return 0 end
  local cost, at = unpack_record(LATENCY, latency[n])
  return cost * math.exp(-math.max(0, now - at) / DECAY)
end

local function observe(n)
  local cost = 0
  if latency[n] then
    local before_it, at = unpack_record(LATENCY, latency[n])
    local keep = math.exp(-math.max(0, now - at) / DECAY)
    cost = before_it * keep + took[n] * (1 - keep)
  end
  latency[n] = pack(LATENCY, math.max(cost, longest[n]), now)
  slower[n] = true
end

local function shift(n, more)
  if home[n] == zone then nearby = nearby + more end
  shifts[home[n]] = (shifts[home[n]] or 0) + more
end

-- Releases. A backend that is `moved` is not where the queue says any more.
for j = 1, #given do
  local n = given[j]
  local back = give[n]
  if back > mine[n] then back = mine[n] end
  if longest[n] and weight[n] ~= GONE then observe(n) end
  if back > 0 then
    changed[n] = true
    mine[n] = mine[n] - back
    local count = inflight[n]
    local still = count > back and count - back or 0
    filled[n] = cap[n] > 0 and count >= cap[n]
    inflight[n] = still
    everything = everything - (count - still)
    if orders then shift(n, still - count) end
    if weight[n] > 0 and (not orders or belongs(n)) and (cap[n] == 0 or still < cap[n]) then
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

local function free(n)
  return weight[n] > 0 and (cap[n] == 0 or inflight[n] < cap[n])
end

-- Who waits is first, and served in turn.
local barred, tickets, refused = {}, {}, {}
if waiting or line then
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
  inflight[n], requests[n], mine[n] = inflight[n] + 1, requests[n] + 1, mine[n] + 1
  everything = everything + 1
  if orders then shift(n, 1) end
  changed[n] = true
end

-- The candidate that the rule of a claim takes, of those that have a number; nil: none of them is free.
local function best_of(claim)
  local kind, list, best, lowest = rule[claim], candidates[claim], nil, nil
  if string.sub(kind, 1, 1) == 'o' then
    local own = list[1]
    if weight[own] ~= GONE and (cap[own] == 0 or inflight[own] < cap[own]) then return own end
    kind = string.sub(kind, 2)
    if kind == '' then return nil end
  end
  if kind == 'f' then
    for j = 1, #list do
      if free(list[j]) then return list[j] end
    end
    return nil
  end
  if kind == 's' then
    for j = 1, #list do
      local n = list[j]
      local own = weight[n] < GONE and GONE - weight[n] or weight[n]
      if own > 0 and (cap[n] == 0 or inflight[n] < cap[n]) and (not lowest or inflight[n] / own < lowest) then
        best, lowest = n, inflight[n] / own
      end
    end
    return best
  end
  local bound = kind ~= 'l' and kind ~= 't' and tonumber(string.sub(kind, 2))
  for j = 1, #list do
    local n = list[j]
    if free(n) then
      if bound then
        local among = zone == '' and everything or nearby
        if inflight[n] < math.ceil(bound * weight[n] * (among + 1)) then return n end
      else
        local load
        if kind == 't' then
          local cost = latency_of(n)
          load = (inflight[n] + 1) * (cost > 0 and cost or inflight[n] > 0 and UNSEEN or 0)
          if ramping then load = load / ramp(slow[n], now) end
        else
          load = load_of(n, true)
        end
        if not lowest or load < lowest then best, lowest = n, load end
      end
    end
  end
  return best
end

-- The same of all its candidates. Who is looked at late is so for all claims that are left, in one step.
local function choose(claim)
  local n = best_of(claim)
  if n or not rest[claim] then return n end
  for one = claim, claims do
    if rest[one] then
      local list = candidates[one]
      for id in string.gmatch(rest[one], '[^\n]+') do list[#list + 1] = number(id) end
      rest[one] = nil
    end
  end
  read_on()
  return best_of(claim)
end

-- Claims with candidates. The order stands as it is, but for loads and for who is full now.
local answer, late = { version }, 0
for claim = plain + 1, claims do
  if rule[claim] and not barred[claim] then
    local n = choose(claim)
    if n then
      count_pick(n)
      answer[claim + 1] = ids[n]
      if least and belongs(n) then
        turns = turns + 1
        score[n] = load_of(n, weighted) + turns * STEP
        moved[n] = true
      end
      if belongs(n) and cap[n] > 0 and inflight[n] >= cap[n] then full[n], moved[n] = true, true end
    else
      late = late + 1
      answer[claim + 1] = false
    end
  end
end
if late > 0 then
  rank(claims - ruled + late + names)
  read_on()
end
if claims > ruled or late > 0 then
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
        score[n] = score[n] + step(n)
      end
      if cap[n] > 0 and inflight[n] >= cap[n] then
        full[n], left[n] = true, score[n]
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

-- The other orders follow: loads have changed, and who is full or free again.
local overdue = {}
local function follow(one, kind)
  local by_load, per_weight = rules(kind)
  local comes, goes, puts, memory = {}, {}, {}, nil
  if not one.canary then memory = one.zone == '' and saved or kept end
  for n = 1, total do
    if changed[n] and weight[n] > 0 and (one.zone == '' or home[n] == one.zone) then
      if cap[n] > 0 and inflight[n] >= cap[n] then
        goes[#goes + 1] = ids[n]
      elseif by_load or filled[n] then
        comes[#comes + 1] = n
      end
    end
  end
  if #comes > 0 then
    local head = call('HMGET', state, one.prefix .. 'q', one.prefix .. 'f', one.prefix .. 'l')
    local steps, from, whom = tonumber(head[1]) or 0, tonumber(head[2]) or 0, head[3] or ''
    for j = 1, #comes do
      local n, enters = comes[j], nil
      if by_load then
        steps = steps + 1
        enters = load_of(n, per_weight) + steps * STEP
      else
        enters = entry(state, one.prefix, per_weight, weight[n], from, whom, ids[n], memory and memory[n] or NEVER)
      end
      puts[2 * j - 1], puts[2 * j] = enters, ids[n]
    end
    if by_load then
      call('HSET', state, one.prefix .. 'q', steps)
      if steps >= STEPS then overdue[#overdue + 1] = { one.key, one.prefix, per_weight } end
    end
    many('ZADD', one.key, puts, 2)
  end
  if #goes > 0 then
    local scores = memory and not by_load and many('ZMSCORE', one.key, goes) or {}
    for j = 1, #goes do
      local n = index[goes[j]]
      if scores[j] then memory[n], left_home[n] = tonumber(scores[j]), one.zone ~= '' or left_home[n] end
    end
    many('ZREM', one.key, goes)
  end
end
if (orders or other_kind) and next(changed) then
  orders = orders or orders_of(KEYS[2], KEYS[4], zones, 6)
  for j = 1, #orders do
    local one = orders[j]
    local kind = canary == (one.canary or false) and own_kind or other_kind
    if kind and one.prefix ~= prefix then follow(one, kind) end
  end
end

-- What changed, in one command per key.
local sets, leases, adds, leave, gone, unheld = {}, {}, {}, {}, {}, {}
for n = 1, total do
  if changed[n] then
    local id = ids[n]
    if weight[n] == GONE and mine[n] == 0 then
      unheld[#unheld + 1] = id
    else
      local at = #leases
      leases[at + 1], leases[at + 2] = id, mine[n]
    end
    if weight[n] == GONE and inflight[n] == 0 then
      for _, prefix in ipairs({ '', '_e', '_s', '_u', '_o' }) do gone[#gone + 1] = prefix .. id end
    else
      local at = #sets
      sets[at + 1], sets[at + 2] = id, pack(RECORD, inflight[n], requests[n], weight[n], cap[n], saved[n])
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
  if slower[n] then
    local at = #sets
    sets[at + 1], sets[at + 2] = '_e' .. ids[n], latency[n]
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
many('HSET', state, sets, 2)
many('HSET', lease, leases, 2)
many('ZADD', order, adds, 2)
many('ZREM', order, leave)
many('HDEL', state, gone)
many('HDEL', lease, unheld)
for name, more in pairs(shifts) do
  -- Nobody serves a zone that is "" or begins with "-".
  if more ~= 0 and string.find(name, '^%w') then call('HINCRBY', state, '_o:' .. name .. ':t', more) end
end

-- Numbers the order anew, keeping its sequence, before ties or deadlines outgrow a double: once in
-- millions of picks, so that its cost, which is that of all members, does not count.
--
-- Also when the last slow start is over: who has seen no release since stands where its share of then put it.
if ramped then call('HDEL', state, prefix .. 'u') end
if least and (turns >= STEPS or ramped) then overdue[#overdue + 1] = { order, prefix, weighted } end
for _, one in ipairs(overdue) do
  local ranked = call('ZRANGE', one[1], 0, -1)
  seen = many('HMGET', state, ranked)
  adds = {}
  for j = 1, #ranked do
    local load, _, per = unpack_record(RECORD, seen[j])
    adds[2 * j - 1], adds[2 * j] = load / (one[3] and per or 1) + j * STEP, ranked[j]
  end
  call('HSET', state, one[2] .. 'q', #ranked)
  many('ZADD', one[1], adds, 2)
end
if weighted and not least and floor >= CYCLES then
  local back = math.floor(floor)
  local ranked = call('ZRANGE', order, 0, -1, 'WITHSCORES')
  adds, sets = {}, { prefix .. 'f', floor - back }
  for j = 1, #ranked, 2 do adds[j], adds[j + 1] = ranked[j + 1] - back, ranked[j] end
  seen = call('HGETALL', state)
  for j = 1, canary and 0 or #seen, 2 do
    local field, value = seen[j], seen[j + 1]
    if zone == '' and string.sub(field, 1, 1) ~= '_' then
      local count, ever, per, most, at = unpack_record(RECORD, value)
      if at ~= NEVER then sets[#sets + 1], sets[#sets + 2] = field, pack(RECORD, count, ever, per, most, at - back) end
    elseif zone ~= '' and string.find(field, '^_z.') and string.gsub(string.sub(value, NAME), '^-', '') == zone then
      local at = unpack_record(HOME, value)
      if at ~= NEVER then
        sets[#sets + 1], sets[#sets + 2] = field, pack(HOME, at - back) .. string.sub(value, NAME)
      end
    end
  end
  many('HSET', state, sets, 2)
  many('ZADD', order, adds, 2)
end

if waiting or line then
  local served = {}
  for claim, ticket in ipairs(tickets) do
    if answer[claim + 1] then served[#served + 1] = ticket end
  end
  many('ZREM', KEYS[5], served)
  if line or #given > 0 then call_up(state, KEYS[2], KEYS[5]) end
  if #refused > 0 then answer[claims + 2] = table.concat(refused, ' ') end
end
return answer
