-- Turn what no claim holds into an outcome.
-- Needs    states, ends
-- Turn what is not in a claim (unreleased, and waiting to come back) into an outcome at once.
local function withdraw(id, to, reason)
  local k = job_key(id)
  local h = call('HMGET', k, 'cursor', 'recipients', 'chunk_size', 'sender')
  local cursor, recipients, size = num(h[1]), num(h[2]), num(h[3])
  local ranges, delta, total = {}, {}, 0
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
      end
    end
    call('ZREM', k .. ':again', member)
  end
  if total > 0 then
    delta[to] = (delta[to] or 0) + total
    count(id, h[4], delta, {[reason] = to == 5 and total or nil})
    call('XADD', P .. 'outcomes', '*', 'k', 'range', 'j', id, 's', int(to), 'r', int(reason),
         'p', table.concat(ranges))
  end
  if call('ZCARD', k .. ':again') > 0 then wake_at('j:' .. id, now) end
  return settle_end(id)
end
