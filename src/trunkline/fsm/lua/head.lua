-- KEYS[1] is a hash. Its field `names` is always there: the encoded names of the data, joined, in
-- the order in which they were added. Fields `flow` and `state` are there where they are not None. A
-- field of the data is a dot and the encoded name.
local function live(ttl)
    if ttl == '' then redis.call('PERSIST', KEYS[1]) else redis.call('PEXPIRE', KEYS[1], ttl) end
end
local function put(field, value)
    if value == '' then redis.call('HDEL', KEYS[1], field)
    else redis.call('HSET', KEYS[1], field, value) end
end
local function merge(names, first)
    local added = {}
    for i = first, #ARGV, 2 do
        if redis.call('HSET', KEYS[1], '.' .. ARGV[i], ARGV[i + 1]) == 1 then
            added[#added + 1] = ARGV[i]
        end
    end
    if #added > 0 or names == '' then
        redis.call('HSET', KEYS[1], 'names', names .. table.concat(added))
    end
end
local function replace(flow, state, first)
    -- A script that has deleted something may fill a server that is full already.
    redis.call('HSET', KEYS[1], 'names', '')
    redis.call('DEL', KEYS[1])
    if flow and flow ~= '' then redis.call('HSET', KEYS[1], 'flow', flow) end
    if state and state ~= '' then redis.call('HSET', KEYS[1], 'state', state) end
    merge('', first)
end
