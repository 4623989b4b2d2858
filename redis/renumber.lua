-- Part of `claim`: what keeps the numbers of an order within what a double can tell apart.
--
-- Numbers the order anew, keeping its sequence, before ties or deadlines outgrow a double: once in
-- millions of picks, so that its cost, which is that of all members, does not count.
--
-- Also when the last slow start is over: who has seen no release since stands where its share of then put it.
if ramped then call('HDEL', state, prefix .. 'u') end
if overdue == NONE then overdue = {} end
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
      if at ~= NEVER then
        sets[#sets + 1] = field
        sets[#sets + 1] = pack(RECORD, count, ever, per, most, at - back) .. string.sub(value, SHORT + 1)
      end
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
