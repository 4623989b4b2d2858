-- Writes a change of a pool, if the pool is still as its writer saw it.
--
-- KEYS  1 state   2 members   3 order   4 the channel of changes   5 a canary's order
--       then of each zone its order and that for a canary: the zones that there are and those that there will be
-- ARGV  1 version the writer has seen, 0 for a pool that does not exist
--       2 settings (JSON), "" to keep them   3 how the order is kept (see order.lua), "" as it is   4 message to publish (JSON)
--       5 the same for a canary: "" as it is, "-" none
--       6 seconds of slow start for backends that begin to serve; "" none; "-" none, for nobody has served so far: nor
--       will those have one that follow within as many seconds
--       7 the zones that there will be, joined by "\n"   8 those whose keys were given
--       then any number of changes:
--       "put", id, record (JSON), serves 0 no|1 yes|2 stands by (see order.lua), weight, max_connections, home (see HOME)
--       "del", id
-- Returns the new version, or -1 - the current version when another writer was first (nothing done)
--
-- Atomic because version, members and order are one: a worker must never read a version whose members
-- are half written, nor claim a backend that was just removed; and of two writers who decided on
-- the same version only one may be right.

-- @include place

local state, members, zones, orders = KEYS[1], KEYS[2], ARGV[7], orders_of(KEYS[3], KEYS[5], ARGV[8], 6)
local zoned = #orders > 2
local version = tonumber(call('HGET', state, '_v')) or 0
if version ~= (tonumber(ARGV[1]) or 0) then return -1 - version end

local function forget(order, fields)
  for j = 1, #fields do fields[j] = order.prefix .. fields[j] end
  call('HDEL', state, unpack(fields))
  call('DEL', order.key)
end

local ids, writes, removed, wanted, j = {}, {}, {}, {}, 9
while ARGV[j] do
  local id = ARGV[j + 1]
  ids[#ids + 1] = id
  if ARGV[j] == 'put' then
    writes[#writes + 1], writes[#writes + 2] = id, ARGV[j + 2]
    local serves, weight = ARGV[j + 3], tonumber(ARGV[j + 4])
    if serves ~= '1' then weight = serves == '2' and GONE - weight or 0 end
    wanted[id] = { weight, tonumber(ARGV[j + 5]), ARGV[j + 6] }
    j = j + 7
  else
    removed[#removed + 1] = id
    j = j + 2
  end
end
many('HSET', members, writes, 2)
many('HDEL', members, removed)

-- Only what the order can see is written and placed anew. A removed backend loses all but the count of
-- connections it still has.
local records, old, ramps = read(state, ids, zoned), {}, {}
for id, record in pairs(records) do
  local weight, cap, home = record[3], record[4], record[6]
  if not wanted[id] then
    record[2], record[3], record[4], record[5], record[6] = 0, GONE, 0, NEVER, ''
  elseif wanted[id][1] == weight and wanted[id][2] == cap and wanted[id][3] == home then
    records[id] = nil
  else
    record[3], record[4], record[6], old[id] = wanted[id][1], wanted[id][2], wanted[id][3], weight
    -- From zone to zone, but for a "-" that comes or goes, it takes nothing along.
    if string.gsub(record[6], '^-', '') ~= string.gsub(home, '^-', '') then record[7] = NEVER end
    if weight <= 0 and record[3] > 0 then ramps[#ramps + 1] = '_u' .. id end
  end
end

-- Who begins to serve does so slowly, but not when all begin.
local slow = tonumber(ARGV[6])
if ARGV[6] == '-' then
  call('HSET', state, '_b', seconds())
elseif slow and #ramps > 0 then
  local now = seconds()
  if now - (tonumber(call('HGET', state, '_b')) or 0) >= slow then
    local till, sets = now + slow, {}
    for _, field in ipairs(ramps) do sets[#sets + 1], sets[#sets + 2] = field, pack(RAMP, now, till) end
    for _, order in ipairs(orders) do
      local field = order.prefix .. 'u'
      sets[#sets + 1], sets[#sets + 2] = field, math.max(till, tonumber(call('HGET', state, field)) or 0)
    end
    many('HSET', state, sets, 2)
  end
end

if ARGV[2] ~= '' then call('HSET', state, '_settings', ARGV[2]) end
for half, prefix in ipairs({ '_', '_c' }) do
  local kind = ARGV[half == 1 and 3 or 5]
  if kind ~= '' and kind ~= (call('HGET', state, prefix .. 'a') or '-') then
    -- Scores of one kind mean nothing to another: everybody enters anew, in the order of names.
    for n = half, #orders, 2 do forget(orders[n], { 'f', 'q', 'p', 'l' }) end
    call('HDEL', state, prefix .. 'a')
    if kind ~= '-' then call('HSET', state, prefix .. 'a', kind) end
    for id, record in pairs(read(state, call('HKEYS', members), zoned)) do
      records[id] = records[id] or record
      if half == 1 then records[id][5], records[id][7] = NEVER, NEVER end
    end
  end
end
local before = zoned and call('HGET', state, '_z') or ''
if zones ~= before then
  -- A slow start may be under way when the first backend of a zone comes.
  local slowly = call('HMGET', state, '_u', '_cu')
  for n = 3, #orders do
    local field = orders[n].prefix .. 'u'
    local till = slowly[orders[n].canary and 2 or 1]
    if till and call('HEXISTS', state, field) == 0 then call('HSET', state, field, till) end
  end
end
place(state, orders, records, old)
if zones ~= before then
  if zones == '' then call('HDEL', state, '_z') else call('HSET', state, '_z', zones) end
  for n = 3, #orders do
    local there = string.find('\n' .. zones .. '\n', '\n' .. orders[n].zone .. '\n', 1, true)
    if not there then forget(orders[n], { 'f', 'q', 'p', 'l', 'u', 't' }) end
  end
end

version = version + 1
call('HSET', state, '_v', version)
call('PUBLISH', KEYS[4], ARGV[4])
return version
