-- Moving any number of backends in the order, for the rare scripts: `claim` does it within its batch.

-- @include order

-- Puts backends where they belong now in one of the orders, `prefix` "_" or "_c", and notes in their records the
-- score with which they left the main one. See `place`.
local function place_in(state, order, prefix, ids, records, old)
  local head = call('HMGET', state, prefix .. 'a', prefix .. 'f', prefix .. 'q', prefix .. 'l', prefix .. 'u')
  if not head[1] and prefix ~= '_' then return end
  local least, weighted = rules(head[1])
  local floor, turns = tonumber(head[2]) or 0, tonumber(head[3]) or 0
  local scores, adds, leave = many('ZMSCORE', order, ids), {}, {}
  local now, ramps = head[5] and seconds(), {}
  if now and least then
    for j = 1, #ids do ramps[j] = '_u' .. ids[j] end
    ramps = many('HMGET', state, ramps)
  end
  for j = 1, #ids do
    local id, score, new = ids[j], tonumber(scores[j]), nil
    local record = records[id]
    local inflight, weight, cap = record[1], record[3], record[4]
    if weight <= 0 or (cap > 0 and inflight >= cap) then
      if score then
        leave[#leave + 1] = id
        if prefix == '_' then record[5] = score end
      end
    elseif least then
      turns = turns + 1
      new = inflight / ((weighted and weight or 1) * ramp(ramps[j], now)) + turns * STEP
    elseif not score then
      local saved = prefix == '_' and record[5] or NEVER
      new = entry(state, prefix, weighted, weight, floor, head[4] or '', id, saved)
    elseif weighted and old and (old[id] or 0) > 0 and old[id] ~= weight and score > floor then
      -- What is left of its step shrinks or grows with the weight, so a new weight acts at once.
      new = floor + (score - floor) * old[id] / weight
    end
    if new then adds[#adds + 1], adds[#adds + 2] = new, id end
  end
  if least then call('HSET', state, prefix .. 'q', turns) end
  many('ZREM', order, leave)
  many('ZADD', order, adds, 2)
end

-- Writes records (id -> { in flight, requests, weight, cap, saved score }) and puts their backends where they
-- belong now. `orders`: the main one and a canary's. `old`: id -> the weight it had, where that may have changed.
local function place(state, orders, records, old)
  local ids, sets, gone = {}, {}, {}
  for id in pairs(records) do ids[#ids + 1] = id end
  if #ids == 0 then return end
  table.sort(ids) -- pairs() has no order, and newcomers get their place by it
  place_in(state, orders[1], '_', ids, records, old)
  place_in(state, orders[2], '_c', ids, records, old)
  for j = 1, #ids do
    local id, record = ids[j], records[ids[j]]
    if record[3] == GONE and record[1] == 0 then
      for _, prefix in ipairs({ '', '_e', '_s', '_u' }) do gone[#gone + 1] = prefix .. id end
    else
      sets[#sets + 1], sets[#sets + 2] = id, pack(RECORD, unpack(record))
    end
  end
  many('HSET', state, sets, 2)
  many('HDEL', state, gone)
end

-- The records of backends (id -> record); one that is unknown is GONE with nothing in flight.
local function read(state, ids)
  local seen, records = many('HMGET', state, ids), {}
  for j = 1, #ids do
    if seen[j] then
      local inflight, requests, weight, cap, saved = unpack_record(RECORD, seen[j])
      records[ids[j]] = { inflight, requests, weight, cap, saved }
    else
      records[ids[j]] = { 0, 0, GONE, 0, NEVER }
    end
  end
  return records
end

-- Changes the in-flight counts of backends (`delta`: id -> difference), never below zero. A backend that
-- was removed keeps its count until its last connection is given back: when it returns under the
-- same name, its count and its cap are right.
local function count(state, orders, delta)
  local ids = {}
  for id in pairs(delta) do ids[#ids + 1] = id end
  local records = read(state, ids)
  local more = 0
  for id, record in pairs(records) do
    local left = math.max(0, record[1] + delta[id])
    more, record[1] = more + left - record[1], left
  end
  place(state, orders, records)
  if more ~= 0 then call('HSET', state, '_t', math.max(0, (tonumber(call('HGET', state, '_t')) or 0) + more)) end
end
