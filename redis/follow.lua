-- Part of `claim`: the other orders of the pool follow. Loads have changed, and who is full or free again.

if not orders then
-- @include zones
  orders = orders_of(KEYS[2], KEYS[4], zones, 6)
end

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
      if scores[j] then memory[n] = tonumber(scores[j]) end
      if scores[j] and one.zone ~= '' then left_home[n] = true end
    end
    many('ZREM', one.key, goes)
  end
end
for j = 1, #orders do
  local one = orders[j]
  local kind = canary == (one.canary or false) and own_kind or other_kind
  if kind and one.prefix ~= prefix then follow(one, kind) end
end
