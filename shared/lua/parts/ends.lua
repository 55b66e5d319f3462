-- A job's events, its state, its end.
-- Needs    base
local ENDED = {completed = true, cancelled = true}

local function note(id, is_end)
  local most = call('HGET', G, 'events_max') or '20000'
  local event = call('XADD', P .. 'events', 'MAXLEN', '~', most, '*', 'j', id, 'e', is_end and '1' or '')
  call('HSET', job_key(id), 'event', event)
  return event
end

-- Tell PostgreSQL of the job's state as it is now.
local function tell_state(id, event)
  local h = call('HMGET', job_key(id), 'state', 'version', 'by', 'reason', 'started_ms', 'finished_ms')
  call('XADD', P .. 'outcomes', '*', 'k', 'state', 'j', id, 's', h[1], 'v', h[2], 'b', h[3] or '',
       'r', h[4] or '', 'e', event or '', 't', int(now), 'a', h[5] or '0', 'f', h[6] or '0')
end

local function set_state(id, state)
  local k = job_key(id)
  call('HSET', k, 'state', state)
  call('HINCRBY', k, 'version', 1)
end

-- Give the job its final state when every recipient has an outcome; return the state it has now.
local function settle_end(id)
  local k = job_key(id)
  local h = call('HMGET', k, 'state', 'recipients', 'sent', 'failed', 'skipped', 'unknown', 'cancelled', 'sender')
  if not h[1] or ENDED[h[1]] then return h[1] end
  local done = num(h[3]) + num(h[4]) + num(h[5]) + num(h[6]) + num(h[7])
  if done < num(h[2]) then return h[1] end
  local state = h[1] == 'cancelling' and 'cancelled' or 'completed'
  call('HSET', k, 'finished_ms', int(now), 'ended', '1')
  set_state(id, state)
  call('SREM', P .. 'low', id)
  call('SREM', P .. 'changed', id)
  call('ZREM', P .. 'timers', 'j:' .. id)
  call('ZREM', sender_key(h[8]) .. ':jobs', id)
  tell_state(id, note(id, true))
  return state
end
