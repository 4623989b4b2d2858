-- Part of `claim`: reads what else is asked for of each backend from number `first` on.
if reported then report = {} end
if ramping then slow = {} end

function read_more(first)
  for prefix, into in pairs({ _s = report, _u = slow, _z = home }) do
    if into ~= NONE then
      local wanted, whose = array(), array()
      for n = first, total do
        -- Who is given back and cannot be picked by this call is asked for no report.
        if into ~= report or searching or score[n] or cap[n] > 0 then
          local at = #whose + 1
          whose[at], wanted[at] = n, prefix .. ids[n]
        end
      end
      local found = many('HMGET', state, wanted)
      for j = 1, #whose do into[whose[j]] = found[j] end
    end
  end
  for n = first, orders and total or 0 do home[n], kept[n] = home_in(home[n]) end
end
read_more(1)
