-- Part of `claim`: reads what else is asked for of each backend from number `first` on.
if reported then report = {} end
if ramping then slow = {} end

function read_more(first)
  for prefix, into in pairs({ _s = report, _u = slow, _z = home }) do
    if into ~= NONE then
      local wanted = {}
      for n = first, total do wanted[n - first + 1] = prefix .. ids[n] end
      local found = many('HMGET', state, wanted)
      for n = first, total do into[n] = found[n - first + 1] end
    end
  end
  for n = first, orders and total or 0 do home[n], kept[n] = home_in(home[n]) end
end
read_more(1)
