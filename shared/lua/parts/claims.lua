-- Entries of `ready` and who holds them.
-- Needs    base
-- Is this entry pending for this worker? A requeue gives a new id, so a stale one never is.
local function owns(worker, entry)
  local p = call('XPENDING', P .. 'ready', 'workers', entry, entry, 1)
  return p[1] ~= nil and p[1][2] == worker
end

local function fields_of(entry)
  local e = call('XRANGE', P .. 'ready', entry, entry)
  if not e[1] then return nil end
  local f = {}
  for i = 1, #e[1][2], 2 do f[e[1][2][i]] = e[1][2][i + 1] end
  return f
end

local function close(entry, sender)
  call('XACK', P .. 'ready', 'workers', entry)
  call('XDEL', P .. 'ready', entry)
  if sender and call('HINCRBY', sender_key(sender), 'outstanding', -1) < 0 then
    call('HSET', sender_key(sender), 'outstanding', '0')
  end
end
