-- Moving any number of backends in the orders, for the rare scripts: `claim` does it within its batch.

-- @include order
-- @include zones

-- A record here is { in flight, requests, weight, cap, score it left the main order with, home (see `home_of`), score it
-- left the order of its zone with }, under `held` and `home` what the first and the sixth were when it was read, and under
-- `more` what else stood in its field.

-- Puts backends where they belong now in one of the orders, and notes in their records the score with which they left
-- it, if it is no canary's. See `place`.
local function place_in(state, order, kind, ids, records, old)
  local prefix, zone = order.prefix, order.zone
  local head = call('HMGET', state, prefix .. 'f', prefix .. 'q', prefix .. 'l', prefix .. 'u')
  local least, weighted = rules(kind)
  local floor, turns, last = tonumber(head[1]) or 0, tonumber(head[2]) or 0, head[3] or ''
  local left = zone == '' and 5 or 7
  local scores, adds, leave = many('ZMSCORE', order.key, ids), {}, {}
  local now, ramps = head[4] and seconds(), {}
  if now and least then
    for j = 1, #ids do ramps[j] = '_u' .. ids[j] end
    ramps = many('HMGET', state, ramps)
  end
  for j = 1, #ids do
    local id, score, new = ids[j], tonumber(scores[j]), nil
    local record = records[id]
    local inflight, weight, cap, home = record[1], record[3], record[4], record[6]
    if weight <= 0 or (zone ~= '' and home ~= zone) or (cap > 0 and inflight >= cap) then
      if score then
        leave[#leave + 1] = id
        -- Who goes to another zone takes nothing along from this one.
        if not order.canary and (zone == '' or home == zone or home == '-' .. zone) then record[left] = score end
      end
    elseif least then
      turns = turns + 1
      new = inflight / ((weighted and weight or 1) * ramp(ramps[j], now)) + turns * STEP
    elseif not score then
      new = entry(state, prefix, weighted, weight, floor, last, id, order.canary and NEVER or record[left])
    elseif weighted and old and (old[id] or 0) > 0 and old[id] ~= weight and score > floor then
      -- What is left of its step shrinks or grows with the weight, so a new weight acts at once.
      new = floor + (score - floor) * old[id] / weight
    end
    if new then adds[#adds + 1], adds[#adds + 2] = new, id end
  end
  if least and #adds > 0 then call('HSET', state, prefix .. 'q', turns) end
  many('ZREM', order.key, leave)
  many('ZADD', order.key, adds, 2)
end

-- Writes records, by id, and puts their backends where they belong now in all orders (see `orders_of`). `old`: id ->
-- the weight it had, where that may have changed.
local function place(state, orders, records, old)
  local ids, sets, gone, under_way = {}, {}, {}, {}
  for id in pairs(records) do ids[#ids + 1] = id end
  if #ids == 0 then return end
  table.sort(ids) -- pairs() has no order, and newcomers get their place by it
  local kinds = call('HMGET', state, '_a', '_ca')
  for _, order in ipairs(orders) do
    local kind = kinds[order.canary and 2 or 1]
    if kind or not order.canary then place_in(state, order, kind, ids, records, old) end
  end
  for j = 1, #ids do
    local id, record = ids[j], records[ids[j]]
    under_way[record.home] = (under_way[record.home] or 0) - record.held
    under_way[record[6]] = (under_way[record[6]] or 0) + record[1]
    if record[3] == GONE and record[1] == 0 then
      for _, prefix in ipairs({ '', '_s', '_u', '_o' }) do gone[#gone + 1] = prefix .. id end
    else
      sets[#sets + 1], sets[#sets + 2] = id, pack(RECORD, unpack(record, 1, 5)) .. record.more
    end
    if record[6] ~= '' then
      sets[#sets + 1], sets[#sets + 2] = '_z' .. id, pack(HOME, record[7]) .. record[6]
    elseif record.home ~= '' then
      gone[#gone + 1] = '_z' .. id
    end
  end
  many('HSET', state, sets, 2)
  many('HDEL', state, gone)
  for _, order in ipairs(orders) do
    local more = order.zone ~= '' and not order.canary and under_way[order.zone] or 0
    if more ~= 0 then call('HINCRBY', state, order.prefix .. 't', more) end
  end
end

-- The records of backends, by id; one that is unknown is GONE with nothing in flight. `zoned`: may they be in zones?
local function read(state, ids, zoned)
  local seen, homes, records = many('HMGET', state, ids), {}, {}
  if zoned then
    for j = 1, #ids do homes[j] = '_z' .. ids[j] end
    homes = many('HMGET', state, homes)
  end
  for j = 1, #ids do
    local home, kept = home_of(homes[j])
    local record = { 0, 0, GONE, 0, NEVER }
    if seen[j] then record = { unpack_record(RECORD, seen[j]) } end
    record[6], record[7], record.home, record.held = home, kept, home, record[1]
    record.more = string.sub(seen[j] or '', SHORT + 1)
    records[ids[j]] = record
  end
  return records
end

-- Changes the in-flight counts of backends (`delta`: id -> difference), never below zero. A backend that
-- was removed keeps its count until its last connection is given back: when it returns under the
-- same name, its count and its cap are right.
local function count(state, orders, delta)
  local ids = {}
  for id in pairs(delta) do ids[#ids + 1] = id end
  local records = read(state, ids, #orders > 2)
  local more = 0
  for id, record in pairs(records) do
    local left = math.max(0, record[1] + delta[id])
    more, record[1] = more + left - record[1], left
  end
  place(state, orders, records)
  if more ~= 0 then call('HSET', state, '_t', math.max(0, (tonumber(call('HGET', state, '_t')) or 0) + more)) end
end
