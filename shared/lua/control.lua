--- Pause, resume, cancel or expire a job, or change its rate, priority or times.
-- Needs    release
--
-- KEYS[1]  P gate    declares the shard's slot
-- ARGV[1]  P         ARGV[2]  job id      ARGV[3]  pause | resume | cancel | expire | rate | priority | times
-- ARGV[4]  by        ARGV[5]  reason      ARGV[6]  value: rate, weight, `scheduled_ms expires_ms`, or
--          with resume: only when the system has paused it for one of these reasons
-- Writes   P job:<id>, P job:<id>:states, P job:<id>:again, P sender:<id>, P sender:<id>:jobs,
--          P outcomes, P events, P changed, P timers, P turns, P ready, P low, P minute:<n>
-- Returns  {ok | same | conflict | gone, state, version, event}
-- Repeat   a state machine: the second call finds the state it made
-- Cost     O(recipients) in one string operation, and 200 members of `again`
local id, act, k = ARGV[2], ARGV[3], job_key(ARGV[2])
local h = call('HMGET', k, 'state', 'sender', 'scheduled_ms', 'expires_ms', 'rate', 'weight', 'by', 'reason')
local state = h[1]
if not state then return {'gone', '', '0', ''} end

local function answer(kind)
  local n = call('HMGET', k, 'state', 'version', 'event')
  return {kind, n[1], n[2] or '0', n[3] or ''}
end

local function become(new)
  call('HSET', k, 'by', ARGV[4], 'reason', ARGV[5])
  set_state(id, new)
  call('ZREM', sender_key(h[2]) .. ':jobs', id)
  tell_state(id)
  note(id, false)
end

if act == 'pause' then
  if state == 'paused' then
    -- What the system may let go on by itself becomes his who wants it paused too.
    local is_for_template = h[7] == 'system' and string.sub(h[8] or '', 1, 16) == 'template_paused:'
    if ARGV[4] == 'system' or not is_for_template then return answer('same') end
    call('HSET', k, 'by', ARGV[4], 'reason', ARGV[5])
    call('HINCRBY', k, 'version', 1)
    tell_state(id)
    note(id, false)
    return answer('ok')
  end
  if ENDED[state] or state == 'cancelling' then return answer('conflict') end
  become('paused')
elseif act == 'resume' then
  if state ~= 'paused' then return answer('conflict') end
  local is_his = h[7] == 'system' and string.find(' ' .. ARGV[6] .. ' ', ' ' .. (h[8] or '') .. ' ', 1, true)
  if ARGV[6] ~= '' and not is_his then return answer('conflict') end
  call('HDEL', k, 'trips', 'trip_run', 'trip_code')
  local done = call('HMGET', k, 'sent', 'failed', 'skipped', 'unknown', 'cancelled')
  -- What webhooks have told so far is of before, too.
  call('HSET', k, 'late_from', call('HGET', k, 'late') or '0', 'since', int(num(done[1]) + num(done[2]) + num(done[3]) + num(done[4]) + num(done[5])))
  become(num(h[3]) > now and 'scheduled' or (call('HEXISTS', k, 'started_ms') == 1 and 'running' or 'queued'))
  offer(id)
  release(16)
elseif act == 'cancel' then
  if state == 'cancelled' or state == 'cancelling' then return answer('same') end
  if state == 'completed' then return answer('conflict') end
  become('cancelling')
  withdraw(id, 7, CANCELLED)
elseif act == 'expire' then
  if ENDED[state] then return answer('same') end
  call('HSET', k, 'expires_ms', int(now))
  withdraw(id, 5, EXPIRED)
elseif ENDED[state] then
  return answer('conflict')
elseif act == 'rate' then
  if num(h[5]) == num(ARGV[6]) then return answer('same') end
  call('HSET', k, 'rate', ARGV[6], 'bucket_ms', '0')
  call('HINCRBY', k, 'version', 1)
  offer(id)
elseif act == 'priority' then
  if num(h[6]) == num(ARGV[6]) then return answer('same') end
  call('HSET', k, 'weight', ARGV[6])
  call('HINCRBY', k, 'version', 1)
else
  local scheduled, expires = string.match(ARGV[6], '^(%d+) (%d+)$')
  if num(h[3]) == num(scheduled) and num(h[4]) == num(expires) then return answer('same') end
  call('HSET', k, 'scheduled_ms', scheduled, 'expires_ms', expires)
  call('HINCRBY', k, 'version', 1)
  offer(id)
end
call('SADD', P .. 'changed', id)
if ENDED[call('HGET', k, 'state')] then call('SREM', P .. 'changed', id) end
return answer('ok')
