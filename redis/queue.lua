-- Who waits for a slot while every backend of a pool is at its cap: what the scripts share that fill and empty the queue.
--
-- The queue is a sorted set of tickets, "<worker> <number>", by the server's time of their coming in microseconds, each
-- later than the one before it. A retry has had a slot before: its ticket stands FIRST before that time, below zero. It
-- may ask at any time, and holds nobody up, for it may not be able to take what is free.
--
-- Who stands among as many from the front as there are free slots may take one. Whoever frees a slot tells the
-- workers of those, on the channel "<queue>:<worker>", for how many they may ask. The field `_w` of the state hash says how many
-- wait; it is gone when nobody does, and then none of this is looked at. Needs order.lua.

local FIRST = 2 ^ 52

-- How many wait, noted where `claim` sees it.
local function note_queue(state, queue)
  local waiting = call('ZCARD', queue)
  if waiting > 0 then call('HSET', state, '_w', waiting) else call('HDEL', state, '_w') end
end

-- Those who may have a slot, when so many are free, and all retries.
local function front_of(queue, slots)
  local retries = call('ZCOUNT', queue, '-inf', '(0')
  return slots + retries > 0 and call('ZRANGE', queue, 0, slots + retries - 1) or {}
end

-- Takes all tickets of a worker out.
local function drop_tickets(queue, worker)
  local tickets, start = {}, worker .. ' '
  for _, ticket in ipairs(call('ZRANGE', queue, 0, -1)) do
    if string.sub(ticket, 1, #start) == start then tickets[#tickets + 1] = ticket end
  end
  many('ZREM', queue, tickets)
end

-- Tells the workers of those who may have a slot. Where nobody listens the worker is gone: its tickets go, too,
-- or they would keep slots from the others until it is reaped.
local function call_up(state, order, queue)
  local most, slots = call('ZCARD', queue), 0
  if most > 0 then
    -- Each backend in the order has a free slot.
    local open = many('HMGET', state, call('ZRANGE', order, 0, most - 1))
    for j = 1, #open do
      local inflight, _, _, cap = unpack_record(RECORD, open[j])
      slots = slots + (cap > 0 and cap - inflight or most)
    end
  end
  local told, again = {}, slots > 0
  while again do
    again = false
    local workers, count = {}, {}
    for _, ticket in ipairs(front_of(queue, math.min(slots, most))) do
      local worker = string.match(ticket, '^(.*) ')
      if not count[worker] then workers[#workers + 1], count[worker] = worker, 0 end
      count[worker] = count[worker] + 1
    end
    for _, worker in ipairs(workers) do
      if told[worker] ~= count[worker] then
        told[worker] = count[worker]
        if call('PUBLISH', queue .. ':' .. worker, count[worker]) == 0 then
          drop_tickets(queue, worker)
          again = true
        end
      end
    end
  end
  note_queue(state, queue)
end

-- A worker is gone, or begins anew: its tickets go, and who is behind them may have a slot.
local function give_up(state, order, queue, worker)
  if call('HEXISTS', state, '_w') == 1 then
    drop_tickets(queue, worker)
    call_up(state, order, queue)
  end
end

-- Puts the tickets of a call into the queue, and says which of its claims must not be served. `line`: what the call says
-- of its tickets (see `claim`), nil when it has none; `slots(most)`: how many are free, up to `most`.
-- Returns barred (claim -> true) and the tickets, by claim, with the numbers of those for which there was no room.
local function admit(queue, line, claims, excluded, slots)
  local barred = {}
  if not line then
    for claim = 1, claims do barred[claim] = not excluded[claim] end
    return barred, {}, {}
  end
  local worker, size, oldest, list = string.match(line, '^([^\t]*)\t(%d+)\t(%d+)\t(.*)$')
  local tickets, gone, leaves, refused, adds, mine = {}, {}, {}, {}, {}, {}
  for number in string.gmatch(list, '%S+') do
    local claim = #tickets + 1
    tickets[claim] = worker .. ' ' .. string.match(number, '%d+')
    if string.sub(number, 1, 1) == '-' then gone[#gone + 1], leaves[tickets[claim]] = tickets[claim], true end
  end
  for claim = 1, claims do barred[claim] = leaves[tickets[claim]] end
  many('ZREM', queue, gone)
  -- No ticket outlives its request, whatever became of its worker.
  local time = call('TIME')
  local now = time[1] * 1000000 + time[2]
  call('ZREMRANGEBYSCORE', queue, 0, now - oldest)
  call('ZREMRANGEBYSCORE', queue, '-inf', now - oldest - FIRST)

  local waiting, known = call('ZCARD', queue), many('ZMSCORE', queue, tickets)
  local last = tonumber(call('ZREVRANGE', queue, 0, 0, 'WITHSCORES')[2]) or 0
  local free = slots(waiting + claims)
  last = math.max(now, last)
  for claim = 1, claims do
    if not known[claim] and not barred[claim] then
      if waiting >= free and waiting >= tonumber(size) then
        barred[claim] = true
        refused[#refused + 1] = string.match(tickets[claim], '%d+$')
      else
        last, waiting = last + 1, waiting + 1
        adds[#adds + 1], adds[#adds + 2] = excluded[claim] and last - FIRST or last, tickets[claim]
      end
    end
  end
  many('ZADD', queue, adds, 2)
  for _, ticket in ipairs(front_of(queue, free)) do mine[ticket] = true end
  for claim = 1, claims do
    barred[claim] = barred[claim] or not mine[tickets[claim]]
  end
  return barred, tickets, refused
end
