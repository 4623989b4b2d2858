-- Takes a backend for one request as `claim` does, and tells what there was to choose from at that instant.
--
-- KEYS  those of claim.lua
-- ARGV  1 names of backends to tell of, joined by "\n"   2 how many from the front of the order to tell of besides
--       then those of claim.lua, for exactly one claim
-- Returns { version, backend id or nil, kind of the order, connections of the whole pool, then nine texts for each
--           backend: id, in flight, requests ever, weight (see order.lua), cap, score in the order, peak EWMA in seconds,
--           share of its weight that counts by what it reported, share of it that its slow start allows so far }
--         Numbers are those after the releases and before the pick; "" stands for what there is not.
--       { -1 } and nothing done when the lease is not at this epoch, as `claim`
--
-- Releases act as if they had come in a call of their own just before. Read are, besides what `claim` reads, at most as
-- many backends as there are names and the front of the order has, however large the pool is.
--
-- Atomic because numbers read before or after the claim would be those of another instant: the choice could look wrong,
-- and be right, or the other way round. A script of its own, so that claims nobody asks about cost what they did.

-- @include order
-- @include zones

local function claim(KEYS, ARGV)
-- @include claim
end

local names, front, epoch, releases, says = ARGV[1], tonumber(ARGV[2]), ARGV[3], tonumber(ARGV[5]), ARGV[6]

if releases > 0 then
  local given = { epoch, 0, releases, says }
  for j = 7, 6 + 2 * releases do given[#given + 1] = ARGV[j] end
  local answer = claim(KEYS, given)
  if answer[1] == -1 then return answer end
end

local state = KEYS[1]
local order, prefix, canary = served_from(state, says)
local ids, told = {}, {}
local function tell_of(id)
  if not told[id] then ids[#ids + 1], told[id] = id, true end
end
for id in string.gmatch(names, '[^\n]+') do tell_of(id) end
if front > 0 then
  for _, id in ipairs(call('ZRANGE', order, 0, front - 1)) do tell_of(id) end
end

local function text(value)
  return value and string.format('%.17g', value) or ''
end

local head = call('HMGET', state, canary and '_ca' or '_a', '_t')
local seen, now = { head[1] or 'turns', tonumber(head[2]) or 0 }, seconds()
local fields = {}
for _, field in ipairs({ '', '_s', '_u' }) do
  for _, id in ipairs(ids) do fields[#fields + 1] = field .. id end
end
local found, scores = many('HMGET', state, fields), many('ZMSCORE', order, ids)
for j, id in ipairs(ids) do
  local record, report, slow = found[j], found[#ids + j], found[2 * #ids + j]
  if record then
    local inflight, requests, weight, cap = unpack_record(RECORD, record)
    local cost
    if #record > SHORT then
      local before_it, at = select(6, unpack_record(TIMED, record))
      cost = before_it * math.exp(-math.max(0, now - at) / DECAY)
    end
    for _, value in ipairs({ id, text(inflight), text(requests), text(weight), text(cap), scores[j] or '', text(cost),
      report and text(share(report, now)) or '', slow and text(ramp(slow, now)) or '' }) do seen[#seen + 1] = value end
  end
end

local answer = claim(KEYS, { epoch, 1, 0, says, ARGV[7 + 2 * releases] })
if answer[1] == -1 then return answer end
for j, value in ipairs(seen) do answer[j + 2] = value end
return answer
