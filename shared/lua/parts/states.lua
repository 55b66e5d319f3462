-- Ranks of states, and the counters that hang on their changes.
-- Needs    base
-- pending < retry < intent < unknown = cancelled < skipped < failed < sent; index = state
local RANK = {[0] = 0, 2, 6, 5, 1, 4, 3, 3}
local NAME = {[1] = 'in_flight', [2] = 'sent', [3] = 'failed', [4] = 'retrying', [5] = 'skipped',
              [6] = 'unknown', [7] = 'cancelled'}
local OUTCOME = {[2] = true, [3] = true, [5] = true, [6] = true, [7] = true}

-- Move counters by a table of state -> difference, and what hangs on them.
local function count(id, sender, delta, reasons, speed, speed_at)
  local k, finished = job_key(id), 0
  local minute = P .. 'minute:' .. int(math.floor(now / 60000))
  for state, n in pairs(delta) do
    if n ~= 0 and NAME[state] then
      call('HINCRBY', k, NAME[state], n)
      if OUTCOME[state] then
        finished = finished + n
        -- Its lifetime is set once: the first count of a field of that minute says so.
        if n > 0 and call('HINCRBY', minute, NAME[state], n) == n then call('EXPIRE', minute, 90000) end
      end
    end
  end
  for reason, n in pairs(reasons or {}) do call('HINCRBY', k, 'by:' .. reason, n) end
  if finished ~= 0 then
    call('HINCRBY', sender_key(sender), 'backlog', -finished)
    -- Moving average with a time constant of 5 s.
    local kept = num(speed) * math.exp(-math.max(0, now - num(speed_at)) / 5000)
    call('HSET', k, 'speed', string.format('%.4f', kept + finished / 5), 'speed_at', int(now))
  end
  call('SADD', P .. 'changed', id)
end
