-- The orders that a pool has besides that of all its backends: a canary's, and those of its zones. Needs order.lua.

-- The orders of a pool: that of all its backends, a canary's, and both of each of its zones. `zones`: as `_z` has
-- them; `first`: where in KEYS those of the zones begin, two for each.
local function orders_of(order, canary, zones, first)
  local orders = {
    { key = order, prefix = '_', zone = '' },
    { key = canary, prefix = '_c', zone = '', canary = true },
  }
  for zone in string.gmatch(zones, '[^\n]+') do
    orders[#orders + 1] = { key = KEYS[first], prefix = '_o:' .. zone .. ':', zone = zone }
    orders[#orders + 1] = { key = KEYS[first + 1], prefix = '_oc:' .. zone .. ':', zone = zone, canary = true }
    first = first + 2
  end
  return orders
end

-- What the fourth argument of `claim` says: the order that claims are served from, the prefix of its fields, is it a
-- canary's, the zone it is of, all zones, all orders (nil without zones), and what it says of tickets (nil: nothing).
local function served_from(state, says)
  local half, zone, zones, line = says, '', '', nil
  if #says > 1 then half, zone, zones, line = string.match(says, '^(c?)\t([^\t]*)\t([^\t]*)\t?(.*)$') end
  if line == '' then line = nil end
  -- A canary may have ended since its worker last heard of the pool.
  local canary = half == 'c' and call('HEXISTS', state, '_ca') == 1
  local order, prefix, orders = KEYS[canary and 4 or 2], canary and '_c' or '_', nil
  if zones ~= '' then
    orders = orders_of(KEYS[2], KEYS[4], zones, 6)
    for _, one in ipairs(orders) do
      if one.zone == zone and (one.canary or false) == canary then order, prefix = one.key, one.prefix end
    end
  end
  return order, prefix, canary, zone, zones, orders, line
end

-- Where among the zones a backend is at home, and the score with which it left the order there.
local function home_of(field)
  if not field then return '', NEVER end
  return string.sub(field, NAME), (unpack_record(HOME, field))
end
