-- Part of `claim`: the claims that come with candidates, each by its rule.

-- What an answer may cost at most that nobody has seen yet: a newcomer gets one request, not all of them.
local UNSEEN = 1e6

-- The peak EWMA of how long a backend takes, as it is now.
local function latency_of(n)
  return cost[n] and cost[n] * math.exp(-math.max(0, now - since[n]) / DECAY) or 0
end

-- Is it one of those who stand in the order, or will when they are free again?
local function belongs(n)
  return weight[n] > 0 and (zone == '' or home[n] == zone)
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
          local takes = latency_of(n)
          load = (inflight[n] + 1) * (takes > 0 and takes or inflight[n] > 0 and UNSEEN or 0)
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
