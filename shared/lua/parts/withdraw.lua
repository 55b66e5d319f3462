-- Turn what no claim holds into an outcome.
-- Needs    states, ends
-- Turn what is not in a claim (unreleased, and waiting to come back) into an outcome at once.
local function withdraw(id, to, reason)
  local k = job_key(id)
  local h = call('HMGET', k, 'cursor', 'recipients', 'chunk_size', 'sender')
  local cursor, recipients, size = num(h[1]), num(h[2]), num(h[3])
  local ranges, doubts, delta, total = {}, {}, {}, 0
  if cursor < recipients then
    local tail = call('GETRANGE', k .. ':states', int(cursor), int(recipients - 1))
    local out, n = string.gsub(tail, '%z', string.char(to))
    if n > 0 then
      local from, first, last = 1, nil, nil
      first, last = string.find(tail, '%z+', from)
      while first do
        ranges[#ranges + 1] = u32(cursor + first - 1) .. u32(cursor + last - 1)
        from = last + 1
        first, last = string.find(tail, '%z+', from)
      end
      call('SETRANGE', k .. ':states', int(cursor), out)
      total = n
    end
    call('HSET', k, 'cursor', int(recipients))
  end
  for _, member in ipairs(call('ZRANGE', k .. ':again', 0, 199)) do
    local chunk, offsets = string.match(member, '^(%d+):(.*)$')
    for i = 1, #offsets, 2 do
      local high, low = string.byte(offsets, i, i + 1)
      local at = num(chunk) * size + high * 256 + low
      local byte = string.byte(call('GETRANGE', k .. ':states', int(at), int(at)))
      local state = byte % 8
      if state == 0 or state == 4 then
        call('SETRANGE', k .. ':states', int(at), string.char(byte - state + to))
        if state == 4 then delta[4] = (delta[4] or 0) - 1 end
        total = total + 1
        ranges[#ranges + 1] = u32(at) .. u32(at)
      elseif state == 1 then
        -- Left by one who died, and given back by whoever came too late for its turn.
        call('SETRANGE', k .. ':states', int(at), string.char(byte + 5))
        doubts[#doubts + 1] = u32(at) .. u32(at)
      end
    end
    call('ZREM', k .. ':again', member)
  end
  if total + #doubts > 0 then
    delta[to], delta[1], delta[6] = total, -#doubts, #doubts
    count(id, h[4], delta, {[reason] = to == 5 and total > 0 and total or nil})
    for outcome, found in pairs({[to] = ranges, [6] = doubts}) do
      if #found > 0 then
        call('XADD', P .. 'outcomes', '*', 'k', 'range', 'j', id, 's', int(outcome),
             'r', int(outcome == 6 and CRASH or reason), 'p', table.concat(found))
      end
    end
  end
  if call('ZCARD', k .. ':again') > 0 then wake_at('j:' .. id, now) end
  return settle_end(id)
end
