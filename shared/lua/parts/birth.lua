-- Make a job's keys: what submit and restore share.
-- Needs    release
local function tell_limits(id)
  local h = call('HMGET', job_key(id), 'state', 'event')
  return h[1] or '', h[2] or ''
end

-- Make a job's keys; chunks are staged already. Returns what `submit` and `restore` answer.
local function birth(id, fields, states, cursor, counters)
  local k = job_key(id)
  local state, event = tell_limits(id)
  if state ~= '' then return {'exists', state, event, '-1'} end
  local h = {}
  for i = 1, #fields, 2 do h[fields[i]] = fields[i + 1] end
  local recipients, size = num(h.recipients), num(h.chunk_size)
  local chunks = math.ceil(recipients / size)
  if states == '' then
    if call('XLEN', k .. ':chunks') < chunks then
      local have = call('XRANGE', k .. ':chunks', '-', '+')
      local missing = 0
      for _, e in ipairs(have) do
        if e[1] ~= int(missing + 1) .. '-0' then break end
        missing = missing + 1
      end
      return {'missing', '', '', int(missing)}
    end
    states = string.rep(string.char(0), recipients)
  end
  call('PERSIST', k .. ':chunks')
  call('SET', k .. ':states', states)
  call('HSET', k, unpack(fields))
  call('HSET', k, 'cursor', int(cursor))
  if not h.state then call('HSET', k, 'state', num(h.scheduled_ms) > now and 'scheduled' or 'queued') end
  if #counters > 0 then call('HSET', k, unpack(counters)) end
  local done = 0
  for i = 1, #counters, 2 do
    if counters[i] ~= 'retrying' and counters[i] ~= 'in_flight' and string.sub(counters[i], 1, 3) ~= 'by:' then
      done = done + num(counters[i + 1])
    end
  end
  call('HINCRBY', sender_key(h.sender), 'backlog', int(recipients - done))
  tell_state(id)
  event = note(id, false)
  near_mark(id, cursor, recipients, num(h.reserved), num(h.step))
  settle_end(id)
  offer(id)
  release(8)
  state, event = tell_limits(id)
  return {'made', state, event, '-1'}
end
